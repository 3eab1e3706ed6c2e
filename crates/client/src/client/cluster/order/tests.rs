use std::future::ready;
use std::pin::pin;
use std::time::Duration;

use steadfast_core::topology::Resubmission;

use super::*;

const FAR: Duration = Duration::from_secs(60);

/// Takes a place for a command of one key on this node, when its slot lets it.
async fn enter(order: &InOrder, node: u16) -> Places<'_> {
    enter_with(order, entry(node)).await
}

async fn enter_with(order: &InOrder, entry: Entry) -> Places<'_> {
    let mut line = None;
    loop {
        let entries = Entries::from_iter([entry.clone()]);
        let attempt = pin!(ready(()));
        let entered = order.enter(entries, clock::now(), || true, (&mut line, None), attempt);
        match entered.await {
            Entered::Sent(places, _) => return places,
            Entered::Waited => {}
            Entered::NoRoom | Entered::Divided(_) => panic!("there is room, and one slot"),
        }
    }
}

fn entry(node: u16) -> Entry {
    Entry {
        slot: slot(),
        keys: KeySet::One(7),
        node,
        until: clock::now() + FAR,
    }
}

fn slot() -> Slot {
    Slot::of_key(b"k")
}

#[tokio::test(start_paused = true)]
async fn t9_a_new_command_waits_until_those_that_were_redirected_have_run_at_the_new_owner() {
    let order = InOrder::new(2);
    let mut first = enter(&order, 1).await;
    let mut second = enter(&order, 1).await;
    order.close(slot());
    let mut third = pin!(enter(&order, 2));
    assert!(futures_util::poll!(&mut third).is_pending());
    let deadline = clock::now() + FAR;
    let goes = [(slot(), 2)];
    {
        // The second is told of its redirect first.
        let early = pin!(ready(()));
        let mut waits = pin!(second.again(&goes, deadline, |_| true, early));
        let waiting = futures_util::poll!(&mut waits);
        assert!(waiting.is_pending(), "the first may still run there");
        let attempt = pin!(ready(()));
        let sent = first.again(&goes, deadline, |_| true, attempt).await;
        assert!(matches!(sent, Again::Sent(Poll::Ready(()))));
        first.ran();
        drop(first);
        assert!(matches!(waits.await, Again::Sent(_)));
        assert!(futures_util::poll!(&mut third).is_pending());
    }
    second.ran();
    drop(second);
    third.await;
}

#[tokio::test(start_paused = true)]
async fn c13_those_that_wait_for_a_gate_pass_it_in_the_order_in_which_they_came() {
    let order = InOrder::new(3);
    let first = enter(&order, 1).await;
    order.close(slot());
    let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(enter(&order, 2))).collect();
    for waits in &mut waiting {
        assert!(futures_util::poll!(waits).is_pending());
    }
    drop(first);
    let mut newer = pin!(enter(&order, 2));
    for waits in waiting.iter_mut().skip(1) {
        assert!(futures_util::poll!(waits).is_pending());
    }
    for waits in &mut waiting {
        assert!(futures_util::poll!(waits).is_ready());
    }
    assert!(futures_util::poll!(&mut newer).is_ready(), "nobody waits");
}

#[tokio::test(start_paused = true)]
async fn t9_a_command_whose_slot_gets_another_owner_while_it_is_on_its_way_is_not_sent() {
    let order = InOrder::new(2);
    let owner = std::cell::Cell::new(1);
    let found = owner.get();
    // Nothing is under way, so the gate has nobody to wait for.
    order.hand_over(slot(), || owner.set(2));
    let sent = std::cell::Cell::new(false);
    let attempt = pin!(async { sent.set(true) });
    let stands = || owner.get() == found;
    let entries = Entries::from_iter([entry(found)]);
    let mut line = None;
    let entered = order.enter(entries, clock::now(), stands, (&mut line, None), attempt);
    assert!(matches!(entered.await, Entered::Waited) && !sent.get());
}

#[tokio::test(start_paused = true)]
async fn t9_what_leaves_some_of_its_keys_takes_turns_for_those_only_for_which_it_has_run() {
    let keys = [1, 2, 3].map(KeySet::One);
    let all = KeySet::all(&keys);
    let [ran, refused, waits] = &keys;
    let order = InOrder::new(2);
    let with = |keys: &KeySet| Entry {
        keys: keys.clone(),
        ..entry(1)
    };
    let mut earlier = Vec::new();
    for keys in &keys {
        earlier.push(enter_with(&order, with(keys)).await);
    }
    let mut later = enter_with(&order, with(&all)).await;
    order.close(slot());
    later.leave_all_but(|_| Some(waits.clone()), |_| ran.clone());
    let overtaken = |places: &Places<'_>| {
        let gate = &order.stripe(slot()).lock().gate;
        let may = gate.may_resubmit(slot(), places.command, 2, clock::now());
        may == Resubmission::Overtaken
    };
    let turns_lost = || earlier.iter().map(overtaken).collect::<Vec<_>>();
    assert_eq!(turns_lost(), [true, false, false]);
    // It ends, and has run for nothing more.
    let both = KeySet::all([ran, refused]);
    later.leave_all_but(|_| None, |_| both.clone());
    assert_eq!(turns_lost(), [true, false, false]);
}

#[test]
fn t31_no_more_calls_wait_for_their_slots_than_may() {
    let order = InOrder::new(2);
    let (first, second) = (order.room(None), order.room(None));
    assert!(first.is_some() && second.is_some() && order.room(None).is_none());
    drop(first);
    assert!(order.room(None).is_some());
}

#[test]
fn t31_the_parts_of_a_call_take_one_place_together() {
    let order = InOrder::new(1);
    let (call, other) = (CallRoom::default(), CallRoom::default());
    let (first, second) = (order.room(Some(&call)), order.room(Some(&call)));
    assert!(first.is_some() && second.is_some());
    assert!(order.room(Some(&other)).is_none() && order.room(None).is_none());
    drop(first);
    assert!(order.room(None).is_none(), "a part of it waits still");
    drop(second);
    let room = order.room(Some(&other));
    assert!(room.is_some(), "whoever found no place has taken none");
    assert!(order.room(Some(&call)).is_none());
}

#[tokio::test(start_paused = true)]
async fn t9_t32_those_that_wait_to_be_served_keep_their_places_however_long_that_takes() {
    let order = InOrder::new(2);
    let (mut first, mut second) = (enter(&order, 1).await, enter(&order, 1).await);
    second.hold(slot());
    first.hold(slot());
    let mut third = pin!(enter(&order, 1));
    assert!(futures_util::poll!(&mut third).is_pending());
    // A view comes, and after it more time than slots take to change hands.
    order.close(slot());
    clock::sleep(FAR / 2).await;
    assert!(futures_util::poll!(&mut third).is_pending());
    let deadline = clock::now() + FAR;
    let goes = [(slot(), 1)];
    {
        // At the same node, and yet not ahead of the first.
        let early = pin!(ready(()));
        let mut waits = pin!(second.again(&goes, deadline, |_| true, early));
        assert!(futures_util::poll!(&mut waits).is_pending());
        let sent = first
            .again(&goes, deadline, |_| true, pin!(ready(())))
            .await;
        assert!(matches!(sent, Again::Sent(_)));
        assert!(matches!(waits.await, Again::Sent(_)));
    }
    for mut place in [first, second] {
        assert!(futures_util::poll!(&mut third).is_pending());
        place.ran();
    }
    third.await;
}

#[tokio::test(start_paused = true)]
async fn c13_those_that_wait_for_a_first_owner_are_sent_in_the_order_in_which_they_came() {
    let order = InOrder::new(2);
    let deadline = clock::now() + FAR;
    let mut lined: Vec<_> = (0..3)
        .map(|_| order.stand_in_line(Entries::from_iter([entry(NOBODY)])))
        .collect();
    let goes = [(slot(), 1)];
    let mut later = pin!(enter(&order, 1));
    assert!(futures_util::poll!(&mut later).is_pending());
    let sent = std::cell::RefCell::new(Vec::new());
    let sends = lined.iter_mut().enumerate().rev();
    let sends = sends.map(|(number, places)| {
        let (sent, goes) = (&sent, &goes);
        async move {
            let attempt = pin!(async { sent.borrow_mut().push(number) });
            places.again(goes, deadline, |_| true, attempt).await
        }
    });
    let ended = futures_util::future::join_all(sends).await;
    assert!(ended.iter().all(|again| matches!(again, Again::Sent(_))));
    assert_eq!(*sent.borrow(), [0, 1, 2]);
    assert!(futures_util::poll!(&mut later).is_pending());
    drop(lined);
    later.await;
}

#[tokio::test(start_paused = true)]
async fn t9_whoever_shares_a_key_waits_for_the_deadline_of_the_earlier_and_nobody_else_waits() {
    let order = InOrder::new(2);
    let mut first = enter(&order, 1).await;
    order.close(slot());
    let begun = clock::now();
    {
        let of_another_key = Entry {
            keys: KeySet::One(8),
            ..entry(2)
        };
        let mut other = pin!(enter_with(&order, of_another_key.clone()));
        assert!(futures_util::poll!(&mut other).is_ready());
        let mut of_both = entry(2);
        of_both.keys = KeySet::hashed(vec![7, 8]);
        let mut both = pin!(enter_with(&order, of_both));
        assert!(futures_util::poll!(&mut both).is_pending());
        // It would overtake the one of both keys.
        let mut other = pin!(enter_with(&order, of_another_key));
        assert!(futures_util::poll!(&mut other).is_pending());
        both.await;
        other.await;
    }
    assert_eq!(clock::now().duration_since(begun), FAR);
    let deadline = clock::now() + FAR;
    let (goes, attempt) = ([(slot(), 2)], pin!(ready(())));
    let again = first.again(&goes, deadline, |_| true, attempt).await;
    assert!(matches!(again, Again::Overtaken(_)));
}

#[tokio::test(start_paused = true)]
async fn t6_what_goes_nowhere_any_more_when_its_turn_comes_is_not_sent_and_keeps_its_place() {
    let order = InOrder::new(2);
    let mut first = enter(&order, 1).await;
    order.close(slot());
    let deadline = clock::now() + FAR;
    let mut later = pin!(enter(&order, 1));
    assert!(futures_util::poll!(&mut later).is_pending());
    let goes = [(slot(), 2)];
    let never = pin!(async { panic!("it was sent") });
    let again = first.again(&goes, deadline, |_| false, never).await;
    let Again::<()>::Outdated(slots) = again else {
        panic!("it is outdated");
    };
    assert_eq!(slots[..], [slot()]);
    assert!(futures_util::poll!(&mut later).is_pending());
    let goes = [(slot(), 1)];
    let again = first
        .again(&goes, deadline, |_| true, pin!(ready(())))
        .await;
    assert!(matches!(again, Again::Sent(_)));
    first.ran();
    drop(first);
    later.await;
}

#[tokio::test(start_paused = true)]
async fn t9_whoever_is_forgotten_in_line_holds_up_nobody_for_longer_than_its_deadline() {
    let order = InOrder::new(3);
    let first = enter(&order, 1).await;
    order.close(slot());
    let mut forgotten = pin!(enter(&order, 2));
    assert!(futures_util::poll!(&mut forgotten).is_pending());
    let mut later = entry(2);
    later.until += FAR;
    let mut later = pin!(enter_with(&order, later));
    assert!(futures_util::poll!(&mut later).is_pending());
    drop(first);
    assert!(futures_util::poll!(&mut later).is_pending());
    let begun = clock::now();
    later.await;
    assert_eq!(clock::now().duration_since(begun), FAR);
}

#[tokio::test(start_paused = true)]
async fn t8_t9_what_has_lost_its_turn_for_one_key_goes_on_with_the_others() {
    let order = InOrder::new(2);
    let both = Entry {
        keys: KeySet::hashed(vec![7, 8]),
        ..entry(1)
    };
    let mut pipeline = enter_with(&order, both).await;
    let mut later = enter(&order, 1).await;
    order.close(slot());
    later.ran();
    drop(later);
    let (deadline, goes) = (clock::now() + FAR, [(slot(), 2)]);
    let never = pin!(async { panic!("it was sent") });
    let again = pipeline.again(&goes, deadline, |_| true, never).await;
    let Again::<()>::Overtaken(lost) = again else {
        panic!("a later one of a key of it has run");
    };
    assert_eq!(lost, LostKeys::from([(slot(), KeySet::One(7))]));
    let rest = KeySet::One(8);
    pipeline.leave_all_but(|_| Some(rest.clone()), |_| KeySet::Empty);
    let attempt = pin!(ready(()));
    let again = pipeline.again(&goes, deadline, |_| true, attempt).await;
    assert!(matches!(again, Again::Sent(_)));
}

fn other() -> Slot {
    Slot::of_key(b"other")
}

fn entry_in_other(node: u16) -> Entry {
    Entry {
        slot: other(),
        ..entry(node)
    }
}

/// Tries to enter with a command of two slots.
async fn enter_both<'a>(order: &'a InOrder, line: &mut Option<InLine<'a>>) -> Entered<'a, ()> {
    let entries = Entries::from_iter([entry(2), entry_in_other(1)]);
    let attempt = pin!(ready(()));
    let entered = order.enter(entries, clock::now(), || true, (line, None), attempt);
    entered.await
}

#[tokio::test(start_paused = true)]
async fn t8_what_waits_for_one_of_its_slots_holds_up_nobody_in_the_others() {
    let order = InOrder::new(4);
    let _first = enter(&order, 1).await;
    order.close(slot());
    let mut line = None;
    let Entered::Divided(waits) = enter_both(&order, &mut line).await else {
        panic!("one of its slots changes hands");
    };
    assert_eq!(waits[..], [slot()]);
    let mut new = pin!(enter_with(&order, entry_in_other(1)));
    assert!(futures_util::poll!(&mut new).is_ready());
    let mut new = pin!(enter(&order, 2));
    assert!(futures_util::poll!(&mut new).is_pending());
}

#[tokio::test(start_paused = true)]
async fn t8_what_waits_for_two_slots_goes_on_in_the_one_that_is_well_first() {
    let order = InOrder::new(4);
    let first = enter(&order, 1).await;
    let second = enter_with(&order, entry_in_other(1)).await;
    [slot(), other()]
        .into_iter()
        .for_each(|slot| order.close(slot));
    let mut line = None;
    {
        let mut entered = pin!(enter_both(&order, &mut line));
        assert!(futures_util::poll!(&mut entered).is_pending());
        drop(second);
        assert!(matches!(entered.await, Entered::Waited));
    }
    let mut new = pin!(enter_with(&order, entry_in_other(1)));
    assert!(futures_util::poll!(&mut new).is_pending());
    let Entered::Divided(waits) = enter_both(&order, &mut line).await else {
        panic!("one of its slots changes hands");
    };
    assert_eq!(waits[..], [slot()]);
    let mut goes = line.take().unwrap();
    let rest = goes.divide(&waits).unwrap().remove(&slot()).unwrap();
    assert!(!goes.is_empty() && !rest.is_empty());
    assert!(futures_util::poll!(&mut new).is_pending(), "it came first");
    drop(goes);
    assert!(futures_util::poll!(&mut new).is_ready());
    // What is left is told of its own slot.
    drop(first);
    rest.wake.notified().await;
}

#[tokio::test(start_paused = true)]
async fn t8_what_has_its_turn_in_one_slot_does_not_wait_for_its_turn_in_another() {
    let order = InOrder::new(4);
    let before = enter(&order, 1).await;
    let Entered::Sent(mut both, _) = enter_both(&order, &mut None).await else {
        panic!("no slot changes hands");
    };
    [slot(), other()]
        .into_iter()
        .for_each(|slot| order.close(slot));
    let deadline = clock::now() + FAR;
    let goes = [(slot(), 3), (other(), 3)];
    let attempt = pin!(ready(()));
    let Again::Divided(waits) = both.again(&goes, deadline, |_| true, attempt).await else {
        panic!("it is its turn in one of them");
    };
    assert_eq!(waits[..], [slot()]);
    let mut rest = both.divide(waits).remove(&slot()).unwrap();
    let attempt = pin!(ready(()));
    let again = both.again(&goes[1..], deadline, |_| true, attempt).await;
    assert!(matches!(again, Again::Sent(_)));
    let attempt = pin!(ready(()));
    let mut again = pin!(rest.again(&goes[..1], deadline, |_| true, attempt));
    assert!(futures_util::poll!(&mut again).is_pending());
    drop(before);
    assert!(matches!(again.await, Again::Sent(_)));
}
