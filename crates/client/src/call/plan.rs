//! The plan of a call, made before it is sent: may it run here, what would a repeat do, does
//! it block, which connection serves it?

mod encoding;
mod route;

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Pipeline, Value};
use steadfast_core::command::{
    self, Alternative, BlockFor, Class, Effect, Errors, Shared as MayShare,
};
use steadfast_core::conn::Reply;
use steadfast_core::redis_rs::{self, CommandRef};
use steadfast_core::split::Portion;

pub(crate) use self::encoding::Asking;
use self::route::{Route, Router, route_of};
use crate::error::{Certainty, Error, ErrorKind};
use crate::options::CallOptions;
use crate::wire::queue::{SharedPlaces, TxStep, TxSteps};

/// The commands of a call.
#[derive(Clone, Copy)]
pub(crate) enum Payload<'a> {
    Command(&'a Cmd),
    Pipeline(&'a Pipeline),
    /// The share of one node in a call that concerns several. Nothing of it blocks, or begins a
    /// transaction.
    Portions(&'a [Portion<'a>]),
}

/// The commands of a call, owned.
pub(crate) enum OwnPayload {
    Command(Cmd),
    Pipeline(Pipeline),
}

impl OwnPayload {
    pub(crate) fn payload(&self) -> Payload<'_> {
        match self {
            Self::Command(cmd) => Payload::Command(cmd),
            Self::Pipeline(pipeline) => Payload::Pipeline(pipeline),
        }
    }
}

/// The judgement of a payload before it is sent.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    pub(crate) effect: Effect,
    /// Whether it has several commands. Each is judged alone; what a repeat of all of them does is
    /// found out where one is considered.
    pub(crate) several: bool,
    pub(crate) blocking: Option<BlockFor>,
    /// The meaning of an error reply to a single command; of several, each has its own.
    pub(crate) errors: Errors,
    pub(crate) replies: u32,
    pub(crate) route: Route,
    /// To be sent behind an ASKING: a node of a cluster that imports its slot takes it then.
    pub(crate) asking: bool,
    /// The places of the call that it is a part of, if its parts share them.
    pub(crate) places: Option<Arc<SharedPlaces>>,
}

/// The time after its own timeout in which a blocking command may still be answered.
const BLOCKING_GRACE: Duration = Duration::from_secs(1);

impl<'a> Payload<'a> {
    /// Judges the payload. Refused here is what can never run on a shared connection.
    pub(crate) fn plan(self, links: usize, shared_connection: bool) -> Result<Plan, Error> {
        let plan = match self {
            Self::Command(cmd) => {
                let class = classify(cmd)?;
                Plan {
                    name: class.name,
                    effect: class.effect,
                    several: false,
                    blocking: class.blocking,
                    errors: class.errors,
                    replies: 1,
                    route: Router::default().add(cmd, &class, links).route(),
                    asking: false,
                    places: None,
                }
                .allowed(&class, shared_connection)?
            }
            Self::Pipeline(pipeline) => plan_pipeline(pipeline, links, shared_connection)?,
            // Its plan is made of that of the whole: see `Plan::of_portions`.
            Self::Portions(_) => {
                return Err(Error::not_sent(ErrorKind::Invalid {
                    why: "a part of a call has no plan of its own",
                }));
            }
        };
        Ok(plan)
    }

    /// Returns its steps in the transaction of a dedicated connection.
    pub(crate) fn steps(self) -> TxSteps {
        match self {
            Self::Command(cmd) => TxStep::of(cmd).map(|step| (0, step)).into_iter().collect(),
            Self::Pipeline(pipeline) => TxStep::all_of(pipeline),
            Self::Portions(_) => TxSteps::new(),
        }
    }

    /// Returns whether a repeat would find something else, though each of its commands alone could
    /// be repeated.
    pub(crate) fn looks_before_it_writes(self) -> bool {
        match self {
            Self::Command(_) => false,
            Self::Pipeline(pipeline) => command::looks_before_it_writes(
                redis_rs::commands(pipeline).map(command::arguments),
            ),
            Self::Portions(portions) => command::looks_before_it_writes(
                portions
                    .iter()
                    .map(|portion| portion.arguments().into_iter()),
            ),
        }
    }

    /// Returns whether it is a transaction.
    pub(crate) fn is_transaction(self) -> bool {
        matches!(self, Self::Pipeline(pipeline) if pipeline.is_transaction())
    }

    /// Returns the command at this place, the first being 0.
    pub(crate) fn command_at(self, place: usize) -> Option<Portion<'a>> {
        match self {
            Self::Command(cmd) => (place == 0).then(|| Portion::Whole(cmd.into())),
            Self::Pipeline(pipeline) => redis_rs::commands(pipeline).nth(place).map(Portion::Whole),
            Self::Portions(portions) => portions.get(place).copied(),
        }
    }

    /// Returns the payload with what is left of its timeouts, once so much of them has `passed`.
    /// `None` if it is sent again as it is.
    pub(crate) fn with_time_left(self, passed: Duration) -> Option<OwnPayload> {
        match self {
            Self::Command(cmd) => command::with_time_left(cmd, passed).map(OwnPayload::Command),
            Self::Pipeline(pipeline) => {
                let mut shorter = Pipeline::with_capacity(pipeline.len());
                let mut passed = passed;
                for cmd in redis_rs::commands(pipeline) {
                    // One waits after another, so the first have had the time.
                    let blocking = command::classify(command::arguments(cmd)).blocking;
                    match command::with_time_left(cmd, passed) {
                        Some(rest) => shorter.add_command(rest),
                        None => shorter.add_command(cmd.to_cmd()),
                    };
                    if let Some(BlockFor::Time(whole)) = blocking {
                        passed = passed.saturating_sub(whole);
                    }
                }
                Some(OwnPayload::Pipeline(shorter))
            }
            Self::Portions(_) => None,
        }
    }
}

impl Plan {
    fn allowed(self, class: &Class, shared_connection: bool) -> Result<Self, Error> {
        match class.shared {
            MayShare::No(instead) if shared_connection || instead != Alternative::Session => {
                Err(Error::not_sent(ErrorKind::Refused {
                    command: class.name,
                    instead,
                }))
            }
            _ => Ok(self),
        }
    }

    /// The same, with what the caller says of the effect.
    pub(crate) fn adjusted(mut self, options: &CallOptions, repeat_only_reads: bool) -> Self {
        if let Some(effect) = options.effect {
            self.effect = effect;
            self.several = false;
        } else if repeat_only_reads && self.effect == Effect::LastWins {
            self.effect = Effect::Conditional;
        }
        self
    }

    /// The same, of a part of a call whose parts have one place at a node together.
    pub(crate) fn in_place_of(self, places: &Arc<SharedPlaces>) -> Self {
        let places = Some(Arc::clone(places));
        Self { places, ..self }
    }

    /// The plan of what one node gets of a call that is planned so: commands of this effect.
    pub(crate) fn of_portions(
        &self,
        portions: &[Portion<'_>],
        effect: Effect,
        links: usize,
    ) -> Self {
        Self {
            effect,
            several: true,
            replies: portions.len() as u32,
            route: route_of(portions, links),
            ..self.clone()
        }
    }

    /// The deadline of a call, from its options and, for a blocking command, from its own timeout.
    pub(crate) fn limit(
        &self,
        options: &CallOptions,
        default: Duration,
    ) -> Result<Duration, Error> {
        match (options.deadline, self.blocking) {
            (Some(deadline), _) => Ok(deadline),
            (None, None) => Ok(default),
            (None, Some(BlockFor::Time(timeout))) => Ok(timeout.saturating_add(BLOCKING_GRACE)),
            (None, Some(BlockFor::Forever)) => Err(Error::not_sent(ErrorKind::NeedsDeadline {
                command: self.name,
            })),
        }
    }
}

fn classify<'a>(cmd: impl Into<CommandRef<'a>>) -> Result<Class, Error> {
    let cmd = cmd.into();
    if cmd.arguments().len() == 0 {
        return Err(Error::not_sent(ErrorKind::Invalid {
            why: "the command is empty",
        }));
    }
    if cmd.is_no_response() {
        return Err(Error::not_sent(ErrorKind::Invalid {
            why: "a command without a response cannot be tracked: send it as an ordinary one",
        }));
    }
    Ok(command::classify(cmd.arguments()))
}

fn plan_pipeline(
    pipeline: &Pipeline,
    links: usize,
    shared_connection: bool,
) -> Result<Plan, Error> {
    let transaction = pipeline.is_transaction();
    let mut plan = Plan {
        name: if transaction { "MULTI" } else { "PIPELINE" },
        effect: Effect::Read,
        several: true,
        blocking: None,
        errors: Errors::Refuse,
        replies: pipeline.len() as u32 + if transaction { 2 } else { 0 },
        route: Route::default(),
        asking: false,
        places: None,
    };
    let mut router = Router::default();
    for cmd in redis_rs::commands(pipeline) {
        let class = classify(cmd)?;
        plan = plan.allowed(&class, shared_connection)?;
        plan.effect = plan.effect.max(class.effect);
        // Inside a transaction nothing blocks.
        if !transaction {
            plan.blocking = longer(plan.blocking, class.blocking);
        }
        router = router.add(cmd, &class, links);
    }
    if plan.replies == 0 {
        return Err(Error::not_sent(ErrorKind::Invalid {
            why: "the pipeline is empty",
        }));
    }
    plan.route = router.route();
    Ok(plan)
}

fn longer(a: Option<BlockFor>, b: Option<BlockFor>) -> Option<BlockFor> {
    match (a, b) {
        (Some(BlockFor::Time(a)), Some(BlockFor::Time(b))) => {
            Some(BlockFor::Time(a.saturating_add(b)))
        }
        (Some(BlockFor::Forever), _) | (_, Some(BlockFor::Forever)) => Some(BlockFor::Forever),
        (a, b) => a.or(b),
    }
}

pub(crate) fn one(reply: Reply) -> Result<Value, Error> {
    match reply {
        Reply::One(value) => Ok(value),
        Reply::Many(_) => Err(Error::new(
            ErrorKind::Invalid {
                why: "a single command was answered by several replies",
            },
            Certainty::Unknown,
        )),
    }
}

pub(crate) fn many(reply: Reply) -> Vec<Value> {
    match reply {
        Reply::One(value) => vec![value],
        Reply::Many(values) => values,
    }
}

#[cfg(test)]
mod tests {
    use super::route::{hash_tag, link_of_key};
    use super::*;
    use crate::wire::queue::Encode;

    #[test]
    fn keys_with_one_hash_tag_share_a_connection() {
        for links in 1..9 {
            assert_eq!(
                link_of_key(b"{user:1}:name", links),
                link_of_key(b"{user:1}:mail", links)
            );
        }
        assert_eq!(hash_tag(b"a{}b"), b"a{}b");
        assert_eq!(hash_tag(b"a{x"), b"a{x");
    }

    #[test]
    fn keys_spread_over_all_connections() {
        let mut seen = [0usize; 4];
        for n in 0..4000 {
            seen[link_of_key(format!("key:{n}").as_bytes(), 4)] += 1;
        }
        assert!(seen.iter().all(|count| *count > 600), "{seen:?}");
    }

    #[test]
    fn the_room_that_is_set_aside_for_what_is_sent_suffices_and_is_not_much_too_large() {
        let mut set = redis::cmd("SET");
        set.arg("key").arg(vec![0_u8; 10_000]);
        let mut pipeline = redis::pipe();
        for _ in 0..3 {
            pipeline.add_command(set.clone());
        }
        let mut transaction = pipeline.clone();
        transaction.atomic();
        for (payload, arguments) in [
            (Payload::Command(&set), 3),
            (Payload::Pipeline(&pipeline), 9),
            (Payload::Pipeline(&transaction), 11),
        ] {
            let mut bytes = Vec::new();
            payload.encode(&mut bytes);
            let slack = 64 * arguments;
            assert!((bytes.len()..bytes.len() + slack).contains(&payload.size()));
        }
    }

    #[test]
    fn a_reply_is_a_list_of_itself_and_several_are_no_single_one() {
        let two = || vec![Value::Int(1), Value::Okay];
        assert_eq!(many(Reply::One(Value::Int(1))), [Value::Int(1)]);
        assert_eq!(many(Reply::Many(two())), two());
        assert_eq!(one(Reply::One(Value::Int(1))).expect("one"), Value::Int(1));
        let error = one(Reply::Many(two())).expect_err("two");
        assert_eq!(error.certainty(), Certainty::Unknown);
    }
}
