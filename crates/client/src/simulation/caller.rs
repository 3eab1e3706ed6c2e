//! Callers that use the client while things go wrong, and keep account of what they were told.

use std::time::Duration;

use redis::Value;

use super::world::World;
use super::{DEADLINE, NOISE, VALUES, cmd, ms};
use crate::clock;
use crate::error::{Certainty, Error};
use crate::{CallOptions, Client};

/// A call, and what became of it.
pub(super) struct Made {
    pub(super) words: String,
    pub(super) took: Duration,
    /// `None` if its future was dropped.
    pub(super) result: Option<Result<Value, Error>>,
}

/// A caller that uses the client at the same time as others.
pub(super) struct Caller {
    pub(super) client: Client,
    pub(super) number: u32,
    pub(super) rng: fastrand::Rng,
    pub(super) made: Vec<Made>,
    /// The last value that was set, and the last of which the server said so.
    pub(super) set: u32,
    pub(super) acknowledged: u32,
}

impl Caller {
    pub(super) fn new(client: &Client, number: u32, seed: u64) -> Self {
        Self {
            client: client.clone(),
            number,
            rng: fastrand::Rng::with_seed(seed ^ u64::from(number) << 32),
            made: Vec::new(),
            set: 0,
            acknowledged: 0,
        }
    }

    pub(super) async fn call_for(mut self, time: Duration) -> Self {
        let until = clock::now() + time;
        while clock::now() < until {
            match self.rng.u32(0..5) {
                0 => {
                    let words = format!("INCR n:{}:{}", self.number, self.made.len());
                    self.call(words).await;
                }
                1 => {
                    self.set += 1;
                    let words = format!("SET k:{} {}", self.number, self.set);
                    if let Some(Ok(_)) = self.call(words).await {
                        self.acknowledged = self.set;
                    }
                }
                2 => self.look().await,
                _ => {
                    let n = self.rng.u32(0..VALUES);
                    let heard = self.call(format!("GET v:{n}")).await;
                    if let Some(Ok(value)) = heard {
                        let own = format!("value {n}").into_bytes();
                        assert_eq!(*value, Value::BulkString(own), "another call's reply");
                    }
                }
            }
            tokio::time::sleep(ms(self.rng.u64(0..25))).await;
        }
        self
    }

    /// Reads a key that nobody else writes: it never goes back behind what was acknowledged.
    pub(super) async fn look(&mut self) {
        let heard = self.call(format!("GET k:{}", self.number)).await;
        let value = match heard {
            Some(Ok(Value::BulkString(value))) => String::from_utf8_lossy(value).into_owned(),
            Some(Ok(_)) => "0".to_owned(),
            _ => return,
        };
        let value: u32 = value.parse().expect("a number was set");
        let known = self.acknowledged..=self.set;
        assert!(
            known.contains(&value),
            "k:{} is {value}, not of {known:?}",
            self.number
        );
    }

    pub(super) async fn call(&mut self, words: String) -> Option<&Result<Value, Error>> {
        let command = cmd(&words);
        // Now and then with little patience, or none left.
        let limit = match self.rng.u32(0..12) {
            0 => ms(self.rng.u64(1..60)),
            _ => DEADLINE,
        };
        let patience = match self.rng.u32(0..8) {
            0 => ms(self.rng.u64(0..30)),
            _ => Duration::from_secs(60),
        };
        let began = clock::now();
        let scoped = self.client.with(CallOptions::new().deadline(limit));
        let result = tokio::time::timeout(patience, scoped.send(&command))
            .await
            .ok();
        let took = clock::now() - began;
        assert!(
            took <= limit + NOISE,
            "{words} took {took:?} of {limit:?}: {result:?}"
        );
        self.made.push(Made {
            words,
            took,
            result,
        });
        self.made.last()?.result.as_ref()
    }
}

/// Holds what was said of each write against what the server did.
pub(super) fn every_word_was_true(made: &[Made], world: &World) {
    for call in made.iter().filter(|call| !call.words.starts_with("GET")) {
        let (words, ran) = (&call.words, world.ran(&call.words));
        let once = words.starts_with("INCR");
        assert!(!once || ran <= 1, "{words} was run {ran} times");
        match &call.result {
            Some(Ok(_)) => assert!(ran >= 1, "{words} was said to be done"),
            Some(Err(error)) if error.certainty() != Certainty::Unknown => {
                assert_eq!(ran, 0, "{words} was said not to be run: {error}");
            }
            _ => {}
        }
    }
}
