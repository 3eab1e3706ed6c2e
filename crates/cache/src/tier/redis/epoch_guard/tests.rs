//! Of the guard alone: what a look, a delivery and a connection may prove.

use futures_util::FutureExt;

use super::*;
use crate::outbox::WaitingRow;

const RULES: EpochRules = EpochRules {
    heed_watermark: true,
    await_sql: true,
    heed_rollback: true,
};

fn guard_of(database: u64) -> EpochGuard {
    let guard = EpochGuard::new(RULES);
    guard.state.lock().database = Some(database);
    guard
}

fn waits(guard: &EpochGuard) -> bool {
    guard.await_presence().now_or_never().is_none()
}

fn wants_a_look(guard: &EpochGuard) -> bool {
    guard.look_wanted().now_or_never().is_some()
}

/// Looks as the relay does, until it would have to give an order.
fn watch_sql_at(guard: &EpochGuard, watermark: u64) {
    let (since, before) = (guard.vantage(), guard.before_look());
    let glance = Glance {
        database: Some(7),
        watermark,
        waiting: Vec::new(),
        complete: true,
        spread: 0,
    };
    guard.after_look(before, &glance);
    if !guard.is_rolled_back() {
        guard.resume(since);
        guard.prove(since);
    }
}

fn found(watermark: u64, proven: bool) -> Adopted {
    Adopted {
        epoch: number_text(7),
        watermark,
        delivery: None,
        begun: false,
        held: true,
        known: 5,
        proven,
    }
}

/// Nobody has outlived the rollback, so that nothing but Redis tells of it.
#[test]
fn k16_a_look_at_sql_from_before_redis_was_asked_does_not_prove_it() {
    let guard = guard_of(7);
    guard.doubt_all();
    watch_sql_at(&guard, 5);
    guard.adopt(1, Some(found(10, false)));
    let view = guard.epoch_view_at_once().expect("it is read, as stale");
    assert!(!view.proven && guard.is_blind());
    watch_sql_at(&guard, 5);
    assert!(guard.epoch_view_at_once().is_none(), "SQL was rolled back");

    let guard = guard_of(7);
    guard.adopt(0, Some(found(10, false)));
    watch_sql_at(&guard, 10);
    assert!(guard.is_proven(), "SQL has caught up");
    guard.doubt_all();
    watch_sql_at(&guard, 10);
    assert!(!guard.is_proven(), "it may be another Redis");
    guard.adopt(1, Some(found(10, true)));
    assert!(guard.is_proven(), "both are equally far");
}

/// On the same connection, as where a proxy leads to another server.
#[test]
fn k16_a_look_at_sql_does_not_prove_what_was_found_in_redis_since_it_began() {
    let guard = guard_of(7);
    guard.adopt(0, Some(found(10, false)));
    let began = guard.vantage();
    guard.on_behind();
    guard.adopt(0, Some(found(20, false)));
    guard.prove(began);
    assert!(!guard.is_proven());
    guard.prove(guard.vantage());
    assert!(guard.is_proven());
    guard.doubt_all();
    guard.prove(guard.vantage());
    assert!(!guard.is_proven(), "it was not asked on this connection");
}

#[tokio::test]
async fn k16_a_redis_that_one_look_cannot_prove_asks_for_another_unless_it_is_anothers() {
    let guard = guard_of(7);
    guard.adopt(0, None);
    assert!(!wants_a_look(&guard), "each look would ask again");
    guard.adopt(0, Some(found(10, false)));
    assert!(wants_a_look(&guard));
    guard.adopt(0, Some(found(10, true)));
    assert!(!wants_a_look(&guard));
}

/// Redis had applied a row, and the commit that would have told SQL so was lost with the row.
#[test]
fn k16_what_redis_tells_of_a_delivery_is_held_against_the_looks_that_follow() {
    let told = || {
        let guard = guard_of(7);
        guard.adopt(0, Some(found(5, true)));
        let delivery = Delivery::parse("5 6 1@1 6").unwrap();
        guard.hear(0, guard.epoch().unwrap(), delivery);
        guard
    };
    let guard = told();
    watch_sql_at(&guard, 6);
    assert!(!guard.is_rolled_back(), "SQL was told");
    let guard = told();
    let row = RowMark {
        id: 1,
        created_at: 1,
    };
    let waits = Glance {
        database: Some(7),
        watermark: 5,
        waiting: vec![WaitingRow {
            mark: row,
            age_ms: 0,
        }],
        complete: true,
        spread: 0,
    };
    guard.after_look(guard.before_look(), &waits);
    assert!(!guard.is_rolled_back(), "it will be told");
    watch_sql_at(&guard, 5);
    assert!(guard.is_rolled_back(), "the row is lost");

    let guard = told();
    guard.doubt_all();
    guard.adopt(1, Some(found(5, true)));
    watch_sql_at(&guard, 5);
    assert!(!guard.is_rolled_back(), "another Redis may not have it");
    let guard = told();
    guard.on_behind();
    let anew = Adopted {
        epoch: number_text(7) + "anew",
        ..found(5, true)
    };
    guard.adopt(0, Some(anew));
    watch_sql_at(&guard, 5);
    assert!(!guard.is_rolled_back(), "Redis has lost it");
}

/// The next regular look may be a day away.
#[tokio::test]
async fn k16_a_rollback_asks_once_for_the_look_that_orders_what_it_takes() {
    let guard = guard_of(7);
    guard.on_fall(5);
    assert!(wants_a_look(&guard), "a delivery has noticed");
    guard.on_fall(5);
    watch_sql_at(&guard, 5);
    assert!(!wants_a_look(&guard), "it is on its way");

    let guard = guard_of(7);
    watch_sql_at(&guard, 5);
    assert!(!wants_a_look(&guard));
    watch_sql_at(&guard, 4);
    assert!(wants_a_look(&guard), "it may be the verifier's look");
    watch_sql_at(&guard, 4);
    assert!(!wants_a_look(&guard), "looks would chain without end");
}

#[tokio::test]
async fn k16_a_delivery_that_may_not_have_redis_read_again_asks_for_a_look_that_may() {
    let guard = guard_of(7);
    let began = guard.vantage();
    guard.resume(began);
    assert!(!wants_a_look(&guard), "it is read");
    guard.suspend("invalidations wait");
    assert!(!guard.resume(began) && wants_a_look(&guard));
    assert!(guard.resume(guard.vantage()) && !wants_a_look(&guard));
    assert!(!guard.resume(began) && !wants_a_look(&guard), "it is read");
}

/// Whether a look tells, or a delivery that Redis refuses.
#[test]
fn k16_redis_is_not_read_from_the_moment_at_which_a_rollback_is_known() {
    let guard = guard_of(7);
    guard.adopt(0, Some(found(10, true)));
    assert!(guard.epoch_view_at_once().is_some() && !guard.is_blind());
    guard.on_fall(5);
    assert!(guard.epoch_view_at_once().is_none() && guard.is_blind());
    assert_eq!(guard.suspended(), Some(ROLLED_BACK));
}

/// A delivery that found nothing ends when a look has found that everything was lost.
#[test]
fn k16_who_began_before_there_was_a_reason_not_to_read_redis_does_not_end_it() {
    let guard = guard_of(7);
    let began = guard.vantage();
    assert!(guard.suspend(ROLLED_BACK));
    assert!(!guard.resume(began) && guard.suspended().is_some());
    guard.on_fall(5);
    assert!(!guard.resume(guard.vantage()), "it is not ordered yet");
    let order = RowMark {
        id: 1,
        created_at: 1,
    };
    guard.all_is_ordered(order);
    assert!(guard.suspended().is_some(), "nor delivered");
    guard.learn(6, &[order]);
    assert!(guard.resume(guard.vantage()) && guard.suspended().is_none());
}

/// SQL is where the first rollback took it, so that nothing but the order that is gone tells of
/// the second; or another process has delivered it.
#[tokio::test]
async fn k16_nobody_has_redis_read_again_who_finds_nothing_where_an_order_should_wait() {
    for rolled_back_again in [true, false] {
        let guard = guard_of(7);
        guard.adopt(0, Some(found(10, true)));
        guard.on_fall(5);
        watch_sql_at(&guard, 5);
        assert!(wants_a_look(&guard));
        guard.suspend(ROLLED_BACK);
        guard.all_is_ordered(RowMark {
            id: 1,
            created_at: 1,
        });
        assert!(!guard.resume(guard.vantage()) && guard.is_order_out());
        assert!(
            wants_a_look(&guard),
            "the next regular one may be a day away"
        );
        watch_sql_at(&guard, if rolled_back_again { 5 } else { 11 });
        assert!(!guard.is_order_out());
        assert_eq!(guard.is_rolled_back(), rolled_back_again);
        assert_eq!(guard.suspended().is_some(), rolled_back_again);
        assert_eq!(wants_a_look(&guard), rolled_back_again);
    }
}

#[tokio::test]
async fn k16_to_be_found_is_waited_for_on_every_connection_and_in_vain_only_once() {
    let guard = guard_of(7);
    assert!(waits(&guard), "nobody finds it");
    guard.await_presence().await;
    assert!(!waits(&guard), "it was in vain on this connection");
    guard.doubt_all();
    assert!(waits(&guard), "on the next it may be otherwise");
    guard.can_be_found(Some(7));
    assert!(!waits(&guard));
}

#[tokio::test]
async fn k16_whoever_has_lost_the_connection_on_which_it_is_found_waits_for_it() {
    let guard = guard_of(7);
    guard.can_be_found(Some(7));
    guard.is_away(true);
    assert!(waits(&guard), "it cannot be found just now");
    guard.is_away(false);
    assert!(!waits(&guard));
    guard.can_be_found(Some(8));
    assert!(waits(&guard), "found as another's");
}

/// A look that does not see all that waits cannot tell whether an order is among it.
#[test]
fn k16_an_order_that_has_gone_excuses_no_redis_that_is_ahead_later() {
    let guard = guard_of(7);
    let look = |complete| {
        let glance = Glance {
            database: Some(7),
            watermark: 5,
            waiting: Vec::new(),
            complete,
            spread: 0,
        };
        guard.after_look(guard.before_look(), &glance);
        guard.is_rolled_back()
    };
    guard.all_is_ordered(RowMark {
        id: 1,
        created_at: 1,
    });
    assert!(!look(true), "it was delivered");
    guard.state.lock().redis_at = 10;
    assert!(look(false), "SQL was rolled back since");
}

/// Another process has delivered it; whoever waits for it to be gone has Redis read by nobody.
#[test]
fn k16_an_order_that_is_not_where_it_would_stand_has_gone_however_many_others_wait() {
    let guard = guard_of(7);
    let row = |id| WaitingRow {
        mark: RowMark { id, created_at: 1 },
        age_ms: 0,
    };
    let is_out_after_seeing = |ids: [i64; 2]| {
        let glance = Glance {
            database: Some(7),
            watermark: 5,
            waiting: ids.map(row).to_vec(),
            complete: false,
            spread: 9,
        };
        guard.after_look(guard.before_look(), &glance);
        guard.is_order_out()
    };
    guard.all_is_ordered(row(4).mark);
    assert!(is_out_after_seeing([2, 3]), "it may be beyond");
    assert!(is_out_after_seeing([3, 4]), "it waits");
    assert!(!is_out_after_seeing([3, 5]));
}
