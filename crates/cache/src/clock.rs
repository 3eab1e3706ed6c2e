//! The time of the runtime. The one clock of the crate is the monotonic one, by way of tokio, so
//! that a test can stop it.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Instant;

use tokio::runtime::Handle;

/// Returns the present moment.
pub(crate) fn clock() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Whether tokio's clock can be stopped in this program, by its feature `test-util`: then
/// `tokio::time` has a function `pause`, which hides what is called so here.
pub(crate) const CAN_BE_STOPPED: bool = {
    #[allow(unused_imports)]
    use tokio::time::*;
    size_of_val(&pause) == 0
};

/// Nothing, but of another size than a function's name.
#[allow(non_upper_case_globals, dead_code)]
const pause: u8 = 0;

/// Returns whether this is called within a tokio runtime. Outside of any nothing can be waited for:
/// neither timers nor connections to databases live there.
pub(crate) fn is_in_runtime() -> bool {
    Handle::try_current().is_ok()
}

/// Costs the task a turn, of which tokio lets it have 128 before others have theirs. What is
/// answered at once, with an error or something stale, may be asked for again at once; the loads
/// that would change the answer have to run on the same thread, perhaps. Returns whether others
/// have had theirs first: what was seen and what the clock said before is old then.
pub(crate) async fn take_a_turn() -> bool {
    let mut turn = pin!(tokio::task::coop::consume_budget());
    let mut has_waited = false;
    poll_fn(|context| {
        let taken = turn.as_mut().poll(context);
        has_waited |= taken.is_pending();
        taken
    })
    .await;
    has_waited
}
