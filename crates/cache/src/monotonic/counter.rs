//! The present moment for a hit in memory, without a look at the clock.
//!
//! A look at the clock waits for all that was asked of memory before it, so that nothing of one hit
//! is done while the processor waits for the other's entry: a good part of what a hit takes. A look
//! at the processor's counter (the TSC of x86-64, `cntvct_el0` of aarch64) does not wait. So each
//! thread remembers what clock and counter said at its last look at the clock; and until the
//! counter has gone on by what it does in a [`WINDOW`], the present is taken for the end of that
//! window. That is never too early, and by a window too late at most: a value seems so much older
//! than it is, and never younger.
//!
//! The counter is not believed for longer, whatever it counts. At each look at the clock it is held
//! against that: one that has lagged behind, as it may where it stands still while a machine is
//! suspended, is not used by this process again. It is not used at all where the kernel does not
//! offer it as a clock, or where tokio's clock can be stopped, which the counter does not heed.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Once, OnceLock};
use std::time::Duration;

use super::{Monotonic, NanoSpan};
use crate::clock::CAN_BE_STOPPED;

/// The counter of this machine's processor.
struct Counter {
    source: quanta::Clock,
    /// What it counts in a window; zero if it is not to be used any more.
    window: AtomicU64,
}

/// What a thread saw at its last look at the clock.
#[derive(Clone, Copy, Debug)]
struct Look {
    counted: u64,
    /// What the clock said, and a window.
    until: Monotonic,
}

impl Look {
    const NONE: Self = Self {
        counted: 0,
        until: Monotonic::FIRST,
    };

    /// The end of the window, if the present lies in it by what is counted now.
    #[inline]
    fn holds(self, counted: u64, window: u64) -> Option<Monotonic> {
        (counted.wrapping_sub(self.counted) < window).then_some(self.until)
    }

    /// Looks at the clock, and again at the counter. Says too whether the counter has lagged behind
    /// since this look.
    fn next(
        self,
        window: u64,
        count: impl Fn() -> u64,
        clock: impl FnOnce() -> Monotonic,
    ) -> (Self, bool) {
        let counted = count();
        let until = clock().plus(WINDOW);
        let windows = count().wrapping_sub(self.counted) / window;
        let passed = until.since(self.until).0 / WINDOW.0;
        let lags = self.until != Monotonic::FIRST && passed > windows + windows / 8 + MAY_LAG;
        (Self { counted, until }, lags)
    }
}

static COUNTER: OnceLock<Counter> = OnceLock::new();

thread_local! {
    static LAST: Cell<Look> = const { Cell::new(Look::NONE) };
}

/// Returns the present moment, or one that is a [`WINDOW`] later at most.
#[inline]
pub(crate) fn at_latest() -> Monotonic {
    let Some(counter) = COUNTER.get().filter(|_| !CAN_BE_STOPPED) else {
        return Monotonic::now();
    };
    let window = counter.window.load(Ordering::Relaxed);
    LAST.with(|last| {
        let held = last.get().holds(counter.source.raw(), window);
        held.unwrap_or_else(|| look(counter, window, last))
    })
}

#[cold]
fn look(counter: &Counter, window: u64, last: &Cell<Look>) -> Monotonic {
    if window == 0 {
        return Monotonic::now();
    }
    let (look, lags) = last
        .get()
        .next(window, || counter.source.raw(), Monotonic::now);
    if lags {
        counter.window.store(0, Ordering::Relaxed);
    }
    last.set(look);
    look.until
}

/// Finds out how fast the counter counts, once in a process. That takes 0.2 s at most of a thread
/// of its own; until then hits look at the clock.
pub(crate) fn prepare() {
    static BEGUN: Once = Once::new();
    if CAN_BE_STOPPED {
        return;
    }
    BEGUN.call_once(|| {
        let thread = std::thread::Builder::new().name("steadfast-counter".to_owned());
        let found = || {
            if is_offered()
                && let Some(counter) = Counter::find()
            {
                let _ = COUNTER.set(counter);
            }
        };
        if let Err(error) = thread.spawn(found) {
            tracing::debug!(%error, "hits in memory look at the clock");
        }
    });
}

/// Whether the kernel offers the counter as a clock: not where it has found that it does not count
/// alike on all processors. Only Linux tells.
fn is_offered() -> bool {
    let offered = "/sys/devices/system/clocksource/clocksource0/available_clocksource";
    match std::fs::read_to_string(offered) {
        Ok(names) => names
            .split_whitespace()
            .any(|name| matches!(name, "tsc" | "arch_sys_counter")),
        Err(_) => !cfg!(target_os = "linux"),
    }
}

impl Counter {
    /// Finds the counter, if there is one that counts at one rate.
    fn find() -> Option<Self> {
        let source = quanta::Clock::new();
        let nanos = u128::from(source.delta_as_nanos(0, SAMPLE));
        let window = u128::from(WINDOW.0) * u128::from(SAMPLE);
        let window = u64::try_from(window.checked_div(nanos)?).ok()?;
        (window > 0).then(|| Self {
            source,
            window: window.into(),
        })
    }
}

/// The time between two looks at the clock.
const WINDOW: NanoSpan = NanoSpan(Duration::from_micros(100).as_nanos() as u64);

/// The counter may lag behind by so many windows, and by an eighth.
const MAY_LAG: u64 = 10;

/// So much is counted in a few milliseconds at least, by any counter that there is.
const SAMPLE: u64 = 1 << 24;

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock and a counter that a test sets; the counter counts ten times in a window.
    #[derive(Default)]
    struct Machine {
        counted: Cell<u64>,
        at: Cell<u64>,
    }

    impl Machine {
        fn at(&self) -> Monotonic {
            Monotonic(1 + self.at.get())
        }

        fn pass(&self, windows: u64, counted: u64) {
            self.at.set(self.at.get() + windows * WINDOW.0);
            self.counted.set(self.counted.get().wrapping_add(counted));
        }

        fn look(&self, last: Look) -> (Look, bool) {
            last.next(10, || self.counted.get(), || self.at())
        }
    }

    #[test]
    fn k4_within_a_window_the_present_is_its_end_and_after_it_the_clock_is_asked() {
        let machine = Machine::default();
        machine.pass(5, u64::MAX - 3);
        let (look, _) = machine.look(Look::NONE);
        assert_eq!(look.until, machine.at().plus(WINDOW));
        for counted in [0, 4, 9] {
            let held = look.holds((u64::MAX - 3).wrapping_add(counted), 10);
            assert_eq!(held, Some(look.until), "{counted}");
        }
        for counted in [10, 11, u64::MAX] {
            let held = look.holds((u64::MAX - 3).wrapping_add(counted), 10);
            assert_eq!(held, None, "{counted}");
        }
        assert_eq!(look.holds(u64::MAX - 3, 0), None, "not to be used");
    }

    #[test]
    fn k4_a_counter_that_lags_behind_the_clock_is_noticed() {
        let machine = Machine::default();
        let (first, lags) = machine.look(Look::NONE);
        assert!(!lags, "there is nothing to hold it against");
        for (windows, counted, expected) in [
            (1, 10, false),
            (1_000_000, 10_000_000, false),
            (1000, 9000, false),
            (1000, 8000, true),
            (20, 9, true),
            (10, 0, false),
            (1, 1_000_000, false),
        ] {
            let (before, machine) = (first, Machine::default());
            machine.pass(windows, counted);
            let (_, lags) = machine.look(before);
            assert_eq!(lags, expected, "{windows} windows, {counted} counted");
        }
    }

    /// Of this machine's counter, if it has one that may be used.
    #[test]
    fn k4_the_present_is_never_taken_for_earlier_and_never_for_later_than_a_window() {
        if !is_offered() {
            return;
        }
        let counter = Counter::find().expect("every counter has a rate");
        let began = Monotonic::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let (last, mut held) = (Cell::new(Look::NONE), 0);
                    while Monotonic::now().since(began) < Duration::from_millis(500).into() {
                        let before = Monotonic::now();
                        let window = counter.window.load(Ordering::Relaxed);
                        let seen = match last.get().holds(counter.source.raw(), window) {
                            Some(seen) => {
                                held += 1;
                                seen
                            }
                            None => look(&counter, window, &last),
                        };
                        let after = Monotonic::now();
                        assert!(before <= seen.plus(DIFFERENCE), "too early");
                        assert!(seen <= after.plus(WINDOW), "too late");
                    }
                    assert!(held > 0, "the clock was asked each time");
                });
            }
        });
        assert_ne!(counter.window.load(Ordering::Relaxed), 0, "it lagged");
    }

    /// The rate of the counter is measured, to a few parts in a thousand.
    const DIFFERENCE: NanoSpan = NanoSpan(1000);
}
