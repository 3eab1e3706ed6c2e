//! The order of commands whose slot changes hands.

use super::*;
use crate::slot::KeySet;

/// Commands of one key, each on a connection.
/// Commands of one key that began then, with the connections that they are on.
fn of(then: Instant, commands: &[(u64, u64)]) -> Vec<UnderWay> {
    let under_way = |&(command, connection): &(u64, u64)| UnderWay {
        command,
        connection,
        keys: KeySet::One(1),
        until: then + ms(20),
    };
    commands.iter().map(under_way).collect()
}

#[test]
fn t9_a_command_waits_for_those_of_its_keys_until_their_deadlines_and_not_for_others() {
    let now = start();
    let mut gate = SlotGate::new();
    let (one, other) = (slot(1), slot(2));
    let key = KeySet::One(1);
    gate.close(one, of(now, &[(7, 100), (8, 100)]));
    assert_eq!(
        gate.pass(one, &key, now + ms(1)),
        Passage::Until(now + ms(20))
    );
    let several = KeySet::hashed(vec![1, 2]);
    let others = KeySet::hashed(vec![2, 3]);
    let none = KeySet::Empty;
    for waits in [&several, &KeySet::Unknown] {
        assert_eq!(gate.pass(one, waits, now), Passage::Until(now + ms(20)));
    }
    for goes in [&others, &KeySet::One(2), &none] {
        assert_eq!(gate.pass(one, goes, now + ms(30)), Passage::Open);
    }
    assert_eq!(gate.pass(other, &key, now), Passage::Open);
    gate.settle(one, 7, true);
    gate.settle(one, 8, true);
    assert!(gate.is_calm());
    assert_eq!(gate.pass(one, &key, now + ms(1)), Passage::Open);
    // What is still under way when its time is over loses its turn to the first of its key that is
    // let through.
    let mut under_way = of(now, &[(10, 100), (11, 100)]);
    under_way[1].keys = KeySet::One(2);
    gate.close(one, under_way);
    assert_eq!(gate.pass(one, &key, now + ms(20)), Passage::Open);
    assert_eq!(gate.resubmit(one, 10, 200, now), Resubmission::Overtaken);
    assert_eq!(gate.resubmit(one, 11, 200, now), Resubmission::Go);
    // And does not get it back when the slot changes hands once more.
    gate.close(one, of(now, &[(10, 100), (12, 200)]));
    assert_eq!(gate.resubmit(one, 10, 200, now), Resubmission::Overtaken);
    assert_eq!(gate.resubmit(one, 12, 200, now), Resubmission::Go);
    (10..=12).for_each(|command| gate.settle(one, command, true));
    gate.close(one, of(now, &[]));
    assert!(gate.is_calm(), "nobody is under way");
}

#[test]
fn t9_what_is_redirected_twice_is_not_overtaken_by_what_is_redirected_once() {
    let (now, mut gate) = (start(), SlotGate::new());
    let one = slot(1);
    gate.close(one, of(now, &[(1, 100), (2, 100), (3, 100)]));
    (1..=3).for_each(|command| gate.park(one, command));
    assert_eq!(gate.resubmit(one, 1, 200, now), Resubmission::Go);
    // The map says by now that the slot is at 300; the first is still at 200.
    assert_eq!(
        gate.resubmit(one, 2, 300, now),
        Resubmission::Wait(now + ms(20))
    );
    assert_eq!(
        gate.resubmit(one, 3, 200, now),
        Resubmission::Wait(now + ms(20)),
        "behind one that waits"
    );
    assert_eq!(gate.resubmit(one, 1, 300, now), Resubmission::Go);
    assert_eq!(
        gate.resubmit(one, 2, 300, now),
        Resubmission::Go,
        "they are on one connection"
    );
    gate.settle(one, 1, true);
    gate.settle(one, 2, true);
    assert_eq!(gate.resubmit(one, 3, 200, now), Resubmission::Go);
    assert_eq!(
        gate.resubmit(one, 4, 200, now),
        Resubmission::Overtaken,
        "it was not under way"
    );
}

#[test]
fn t9_what_a_later_command_of_its_keys_has_overtaken_is_not_sent_again_and_nothing_else_is_lost() {
    let (now, mut gate) = (start(), SlotGate::new());
    let one = slot(1);
    let mut under_way = of(now, &[(1, 100), (2, 100), (3, 100), (4, 100), (5, 100)]);
    under_way[1].keys = KeySet::One(2);
    under_way[2].keys = KeySet::hashed(vec![2, 1]);
    under_way[3].keys = KeySet::hashed(vec![2, 3]);
    gate.close(one, under_way);
    // Redirected; and the last, behind them on the old connection, may find the slot back.
    (1..=4).for_each(|command| gate.park(one, command));
    assert_eq!(
        gate.resubmit(one, 1, 200, now),
        Resubmission::Wait(now + ms(20))
    );
    assert_eq!(
        gate.resubmit(one, 2, 300, now),
        Resubmission::Go,
        "another key"
    );
    assert_eq!(
        gate.resubmit(one, 3, 200, now),
        Resubmission::Wait(now + ms(20))
    );
    gate.settle(one, 5, true);
    assert_eq!(gate.resubmit(one, 1, 100, now), Resubmission::Overtaken);
    assert_eq!(gate.resubmit(one, 3, 100, now), Resubmission::Overtaken);
    assert_eq!(gate.resubmit(one, 2, 100, now), Resubmission::Go);
    assert_eq!(gate.lost(one, 3), KeySet::One(1), "another key");
    gate.settle(one, 3, false);
    assert_eq!(
        gate.resubmit(one, 4, 100, now),
        Resubmission::Go,
        "other keys"
    );
    // One that ended without running has overtaken nobody.
    gate.close(one, of(now, &[(7, 100), (8, 100)]));
    gate.settle(one, 8, false);
    assert_eq!(gate.resubmit(one, 7, 100, now), Resubmission::Go);
}

#[test]
fn t9_one_that_is_forgotten_holds_up_those_to_be_sent_again_until_its_deadline() {
    let (now, mut gate) = (start(), SlotGate::new());
    let one = slot(1);
    let mut under_way = of(now, &[(1, 100), (2, 100)]);
    under_way[1].until += ms(20);
    gate.close(one, under_way);
    (1..=2).for_each(|command| gate.park(one, command));
    let until = now + ms(20);
    assert_eq!(gate.resubmit(one, 2, 200, now), Resubmission::Wait(until));
    assert_eq!(gate.resubmit(one, 2, 200, until), Resubmission::Go);
    assert_eq!(gate.resubmit(one, 1, 200, until), Resubmission::Overtaken);
}

#[test]
fn t8_t9_what_is_left_of_a_pipeline_keeps_its_order_with_its_own_keys_only() {
    let (now, mut gate) = (start(), SlotGate::new());
    let one = slot(1);
    let mut under_way = of(now, &[(1, 100), (2, 100), (3, 100)]);
    under_way[1].keys = KeySet::hashed(vec![1, 2]);
    gate.close(one, under_way);
    gate.park(one, 1);
    // Its first command was answered, its second is to be sent again.
    gate.narrow(one, 2, &KeySet::One(2));
    assert_eq!(gate.resubmit(one, 1, 200, now), Resubmission::Overtaken);
    gate.settle(one, 3, true);
    assert_eq!(gate.pass(one, &KeySet::One(1), now), Passage::Open);
    assert!(matches!(
        gate.pass(one, &KeySet::One(2), now),
        Passage::Until(_)
    ));
    assert_eq!(gate.resubmit(one, 2, 200, now), Resubmission::Go);
    // Of what nobody knows the keys of, all may still be to come.
    gate.narrow(one, 2, &KeySet::Unknown);
    assert!(matches!(
        gate.pass(one, &KeySet::One(1), now),
        Passage::Until(_)
    ));
}

#[test]
fn t8_t9_what_is_left_of_a_pipeline_loses_its_turn_for_those_keys_only_that_others_have_run_for() {
    let (now, mut gate) = (start(), SlotGate::new());
    let (one, all) = (slot(1), KeySet::hashed(vec![1, 2, 3]));
    let mut under_way = of(now, &[(1, 100), (2, 100)]);
    under_way[0].keys = all.clone();
    gate.close(one, under_way.clone());
    gate.park(one, 1);
    gate.settle(one, 2, true);
    let lost = KeySet::One(1);
    let is_lost = |gate: &mut SlotGate| {
        assert_eq!(gate.resubmit(one, 1, 200, now), Resubmission::Overtaken);
        assert_eq!(gate.lost(one, 1), lost);
        assert_eq!(gate.pass(one, &lost, now), Passage::Open);
        for kept in [2, 3].map(KeySet::One) {
            assert!(matches!(gate.pass(one, &kept, now), Passage::Until(_)));
        }
    };
    is_lost(&mut gate);
    // It does not get it back, however often the slot changes hands or it waits for a primary.
    under_way.truncate(1);
    gate.close(one, under_way);
    is_lost(&mut gate);
    gate.hold(one, 1, all.clone(), now + ms(20));
    is_lost(&mut gate);
    gate.withdraw(one, 1, &all);
    is_lost(&mut gate);
    // What had to do with that key has ended.
    let rest = KeySet::hashed(vec![2, 3]);
    gate.withdraw(one, 1, &rest);
    assert_eq!(gate.lost(one, 1), KeySet::Empty);
    assert_eq!(gate.resubmit(one, 1, 200, now), Resubmission::Go);
    gate.settle(one, 1, true);
    assert!(gate.is_calm());
    assert_eq!(gate.lost(one, 1), KeySet::Unknown, "it has no turn");
}

#[test]
fn t9_what_was_redirected_waits_for_later_ones_that_may_run_where_the_slot_has_come_back() {
    let (now, mut gate) = (start(), SlotGate::new());
    let slot = slot(1);
    gate.close(slot, of(now, &[(7, 100), (8, 100)]));
    gate.park(slot, 7);
    // By way of another node it comes back to the one at which the later is.
    assert_eq!(
        gate.resubmit(slot, 7, 200, now),
        Resubmission::Wait(now + ms(20))
    );
    assert_eq!(
        gate.resubmit(slot, 7, 100, now),
        Resubmission::Wait(now + ms(20))
    );
    let mut ran = SlotGate::new();
    ran.close(slot, of(now, &[(7, 100), (8, 100)]));
    ran.park(slot, 7);
    ran.settle(slot, 8, true);
    assert_eq!(ran.resubmit(slot, 7, 100, now), Resubmission::Overtaken);
    // Or it is redirected too.
    gate.park(slot, 8);
    assert_eq!(
        gate.resubmit(slot, 8, 200, now),
        Resubmission::Wait(now + ms(20))
    );
    assert_eq!(gate.resubmit(slot, 7, 200, now), Resubmission::Go);
    assert_eq!(gate.resubmit(slot, 8, 200, now), Resubmission::Go);
}
