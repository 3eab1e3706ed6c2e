use super::*;

const NONE: &[&str] = &[];
const RULES: JoinRules = JoinRules {
    detach: true,
    heed_age: true,
};

fn cargo() -> Cargo {
    Cargo {
        value: TypeId::of::<u8>(),
        version: 0,
        class: 0,
        limit: Duration::from_secs(3600),
    }
}

#[test]
fn k3_the_second_caller_joins_and_the_first_after_landing_begins_anew() {
    let (flights, generations) = (Arc::new(Flights::new(RULES)), Generations::new());
    let Join::Leader(leader, _) =
        flights.board(b"k", cargo(), NONE, (&generations, &Coherence::alone()))
    else {
        panic!("no leader")
    };
    assert!(matches!(
        flights.board(b"k", cargo(), NONE, (&generations, &Coherence::alone())),
        Join::Joined(_)
    ));
    assert!(matches!(
        flights.board(b"other", cargo(), NONE, (&generations, &Coherence::alone())),
        Join::Leader(..)
    ));
    leader.land(Err(CacheError::Abandoned));
    assert!(matches!(
        flights.board(b"k", cargo(), NONE, (&generations, &Coherence::alone())),
        Join::Leader(..)
    ));
}

#[test]
fn k3_nobody_joins_a_load_of_another_type_version_or_class() {
    let (flights, generations) = (Arc::new(Flights::new(RULES)), Generations::new());
    let Join::Leader(_leader, _) =
        flights.board(b"k", cargo(), NONE, (&generations, &Coherence::alone()))
    else {
        panic!("no leader")
    };
    let (text, newer, stricter) = (TypeId::of::<String>(), 1, 1);
    for other in [
        Cargo {
            value: text,
            ..cargo()
        },
        Cargo {
            version: newer,
            ..cargo()
        },
        Cargo {
            class: stricter,
            ..cargo()
        },
    ] {
        assert!(matches!(
            flights.board(b"k", other, NONE, (&generations, &Coherence::alone())),
            Join::Leader(..)
        ));
    }
}

#[test]
fn k3_nobody_joins_a_load_older_than_an_invalidation() {
    let (flights, generations) = (Arc::new(Flights::new(RULES)), Generations::new());
    let Join::Leader(first, _) =
        flights.board(b"k", cargo(), NONE, (&generations, &Coherence::alone()))
    else {
        panic!("no leader")
    };
    generations.bump_key(b"k");
    let Join::Leader(second, _) =
        flights.board(b"k", cargo(), NONE, (&generations, &Coherence::alone()))
    else {
        panic!("joined an old load")
    };
    drop(first); // must not take the second out of the table
    assert!(matches!(
        flights.board(b"k", cargo(), NONE, (&generations, &Coherence::alone())),
        Join::Joined(_)
    ));
    drop(second);
    assert_eq!(flights.under_way(), 0);
}

#[test]
fn k3_a_reader_whose_look_was_in_vain_waits_for_the_flight_begun_meanwhile_also_if_it_has_landed() {
    let (flights, generations) = (Arc::new(Flights::new(RULES)), Generations::new());
    let coherence = Coherence::alone();
    let world = (&generations, &coherence);
    let look = || flights.look_or_board(Monotonic::now(), b"k", cargo(), NONE, world);
    let Join::Looking(reader) = look() else {
        panic!("no look")
    };
    let Join::Leader(leader, _) = look() else {
        panic!("waits for a reader that nobody may be polling")
    };
    assert!(matches!(look(), Join::Joined(_)));
    leader.land(Err(CacheError::Abandoned));
    let AfterLook::Joined(mut other) = reader.after_look(NONE, &generations) else {
        panic!("a second load")
    };
    assert!(other.look(|progress| progress.outcome.is_some()));
    drop(reader);
    assert_eq!(flights.under_way(), 0);
}

#[test]
fn k3_a_look_that_has_answered_leaves_the_table_to_whoever_came_meanwhile() {
    let (flights, generations) = (Arc::new(Flights::new(RULES)), Generations::new());
    let coherence = Coherence::alone();
    let world = (&generations, &coherence);
    let look = || flights.look_or_board(Monotonic::now(), b"k", cargo(), NONE, world);
    for comes in [false, true] {
        let Join::Looking(reader) = look() else {
            panic!("no look")
        };
        let other = comes.then(look);
        reader.look_is_over();
        assert_eq!(flights.under_way(), usize::from(comes));
        assert_eq!(matches!(look(), Join::Joined(_)), comes);
        drop(other);
        assert_eq!(flights.under_way(), 0);
    }
}

#[test]
fn k3_a_look_in_vain_becomes_a_flight_that_others_join_if_nobody_came_meanwhile() {
    let (flights, generations) = (Arc::new(Flights::new(RULES)), Generations::new());
    let coherence = Coherence::alone();
    let world = (&generations, &coherence);
    let look = || flights.look_or_board(Monotonic::now(), b"k", cargo(), NONE, world);
    let Join::Looking(reader) = look() else {
        panic!("no look")
    };
    let after = reader.after_look(NONE, &generations);
    assert!(matches!(after, AfterLook::Lead));
    assert!(matches!(look(), Join::Joined(_)));
    drop(reader);
    assert!(matches!(look(), Join::Looking(..)));
}

#[test]
fn k3_a_reader_takes_nothing_of_another_type_from_a_flight_begun_while_it_looked() {
    let (flights, generations) = (Arc::new(Flights::new(RULES)), Generations::new());
    let coherence = Coherence::alone();
    let world = (&generations, &coherence);
    let Join::Looking(reader) = flights.look_or_board(Monotonic::now(), b"k", cargo(), NONE, world)
    else {
        panic!("no look")
    };
    let other = Cargo {
        value: TypeId::of::<String>(),
        ..cargo()
    };
    let Join::Leader(_other, _) = flights.board(b"k", other, NONE, world) else {
        panic!("no leader")
    };
    let after = reader.after_look(NONE, &generations);
    assert!(matches!(after, AfterLook::Lead));
    let joined = flights.board(b"k", cargo(), NONE, world);
    assert!(matches!(joined, Join::Joined(_)));
}

#[test]
fn k11_nobody_joins_a_load_whose_value_will_not_carry_his_tag() {
    let (flights, generations) = (Arc::new(Flights::new(RULES)), Generations::new());
    let Join::Leader(_bare, _) =
        flights.board(b"k", cargo(), NONE, (&generations, &Coherence::alone()))
    else {
        panic!("no leader")
    };
    let Join::Leader(_tagged, _) =
        flights.board(b"k", cargo(), &["red"], (&generations, &Coherence::alone()))
    else {
        panic!("joined a load without the tag")
    };
    assert!(matches!(
        flights.board(b"k", cargo(), NONE, (&generations, &Coherence::alone())),
        Join::Joined(_)
    ));
    assert!(matches!(
        flights.board(b"k", cargo(), &["red"], (&generations, &Coherence::alone())),
        Join::Joined(_)
    ));
}

#[test]
fn k3_who_takes_the_place_of_a_flight_carries_its_tags_so_that_those_who_name_them_join() {
    let (flights, generations) = (Arc::new(Flights::new(RULES)), Generations::new());
    let coherence = Coherence::alone();
    let world = (&generations, &coherence);
    let look = |tags: &[&str]| flights.look_or_board(Monotonic::now(), b"k", cargo(), tags, world);
    let Join::Looking(reader) = look(&["red"]) else {
        panic!("no look")
    };
    let Join::Leader(leader, _) = look(&[]) else {
        panic!("waits for a reader that nobody may be polling")
    };
    assert_eq!(leader.tags(), [b"red"]);
    let after = reader.after_look(&["red"], &generations);
    assert!(matches!(after, AfterLook::Joined(_)), "a second load");
    let Join::Leader(both, _) = look(&["blue"]) else {
        panic!("joined a load without the tag")
    };
    assert_eq!(both.tags(), [&b"blue"[..], b"red"]);
    assert!(matches!(look(&["red"]), Join::Joined(_)));
    let other = Cargo {
        version: 1,
        ..cargo()
    };
    let Join::Leader(newer, _) = flights.board(b"k", other, NONE, world) else {
        panic!("joined a load of another version")
    };
    assert!(newer.tags().is_empty(), "another's tags are its own");
}

#[test]
fn k11_nobody_joins_a_look_at_a_value_whose_unnamed_tag_was_invalidated() {
    let (flights, generations) = (Arc::new(Flights::new(RULES)), Generations::new());
    let Join::Leader(leader, _) =
        flights.board(b"k", cargo(), NONE, (&generations, &Coherence::alone()))
    else {
        panic!("no leader")
    };
    leader.carries(generations.tag_stripes(&["red"]));
    assert!(matches!(
        flights.board(b"k", cargo(), NONE, (&generations, &Coherence::alone())),
        Join::Joined(_)
    ));
    generations.bump_tag(b"red");
    assert!(!generations.is_current(&leader.snapshot()));
    assert!(matches!(
        flights.board(b"k", cargo(), NONE, (&generations, &Coherence::alone())),
        Join::Leader(..)
    ));
}

#[tokio::test]
async fn k3_a_leader_that_vanishes_leaves_nobody_waiting() {
    let (flights, generations) = (Arc::new(Flights::new(RULES)), Generations::new());
    let Join::Leader(leader, mut follower) =
        flights.board(b"k", cargo(), NONE, (&generations, &Coherence::alone()))
    else {
        panic!("no leader")
    };
    drop(leader);
    follower.changed().await;
    assert!(follower.look(|progress| matches!(progress.outcome, Some(Err(CacheError::Abandoned)))));
}

#[test]
fn k16_in_an_outage_nobody_joins_a_load_older_than_memory_may_be() {
    let (flights, generations) = (Arc::new(Flights::new(RULES)), Generations::new());
    let coherence = Coherence::unproven();
    let world = (&generations, &coherence);
    let board = |now| flights.board_at(now, b"k", cargo(), NONE, world, false);
    let now = Monotonic::now();
    let later = now.plus((crate::tier::coherence::SPAN * 2).into());
    let Join::Leader(_old, _) = board(now) else {
        panic!("no leader")
    };
    assert!(matches!(board(now), Join::Joined(_)), "young");
    coherence.prove(later, later);
    assert!(matches!(board(later), Join::Joined(_)), "proven");
    coherence.disprove(later);
    assert!(
        matches!(board(later), Join::Leader(..)),
        "old, and nobody vouches"
    );
}

/// Its leader may be in a runtime that nobody drives.
#[test]
fn k9_nobody_joins_a_load_that_is_past_the_hard_limit_of_its_class() {
    let (flights, generations) = (Arc::new(Flights::new(RULES)), Generations::new());
    let coherence = Coherence::alone();
    let world = (&generations, &coherence);
    let (now, second) = (Monotonic::now(), Duration::from_secs(1));
    let brisk = Cargo {
        limit: second,
        ..cargo()
    };
    let board = |now| flights.board_at(now, b"k", brisk, NONE, world, false);
    let Join::Leader(_parked, _) = board(now) else {
        panic!("no leader")
    };
    assert!(matches!(
        board(now.plus((second / 2).into())),
        Join::Joined(_)
    ));
    assert!(matches!(board(now.plus(second.into())), Join::Leader(..)));
}
