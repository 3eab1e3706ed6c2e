//! Which sentinel is believed.

use super::*;

#[tokio::test]
async fn t3_t17_a_stale_sentinel_is_left_as_soon_as_a_newer_epoch_is_told_and_never_returned_to() {
    let (old, new) = two().await;
    let stale = Scripted::start("stale", old.addr(), 3).await;
    let second = Scripted::start("second", new.addr(), 7).await;
    second.says(|says| says.manner = Manner::Only("-LOADING not yet"));
    let sentinels = [stale, second];
    let builder = builder_of(&sentinels).deadline(ms(5_000));
    // Asked often, so that the test need not wait.
    let client = builder.primary_proof(ms(1_000)).connect().await.unwrap();
    assert_eq!(served_by(&client).await, old.addr().to_string());
    sentinels[1].says(|says| says.manner = Manner::Plain);
    let [stale, second] = sentinels;
    until("the newer one is believed", || {
        believed(&client) == Some(new.addr().to_string())
    })
    .await;
    assert_eq!(served_by(&client).await, new.addr().to_string());
    // The stale one goes on telling what it knows, and the newer one is away.
    second.says(|says| says.manner = Manner::Only("-LOADING not now"));
    let asked = stale.asked().len();
    until("it is asked again and again", || {
        stale.asked().len() > asked + 5
    })
    .await;
    assert_eq!(believed(&client), Some(new.addr().to_string()));
    assert!(contact(&client, stale.addr).dissents);
}

#[tokio::test]
async fn t17_a_switch_of_which_no_message_tells_is_found_by_asking() {
    let (old, new) = two().await;
    let sentinels = Scripted::several(3, old.addr(), 1).await;
    let builder = builder_of(&sentinels).deadline(ms(5_000));
    let client = builder.primary_proof(ms(1_500)).connect().await.unwrap();
    assert_eq!(served_by(&client).await, old.addr().to_string());
    // The old one lives and answers: nothing but their answers says that it is deposed.
    for sentinel in &sentinels {
        sentinel.names(new.addr(), 2);
    }
    until("it is found", || {
        believed(&client) == Some(new.addr().to_string())
    })
    .await;
    assert_eq!(served_by(&client).await, new.addr().to_string());
}

#[tokio::test]
async fn t17_a_message_of_a_switch_does_not_wait_for_how_often_they_were_asked_in_vain() {
    // Nobody serves, so that they are wanted again and again.
    let sentinels = Scripted::several(5, nobody().await, 1).await;
    let client = builder_of(&sentinels).build().unwrap();
    until("all are listened to, and asked ever less often", || {
        let rarely = |one: &Scripted| {
            let asked = one.asked();
            let gaps = asked.windows(2).map(|two| two[1].duration_since(two[0]));
            one.part.messages.receiver_count() > 0 && gaps.max() > Some(ms(700))
        };
        sentinels.iter().all(rarely)
    })
    .await;
    let told = now();
    for sentinel in &sentinels {
        sentinel.tells_of_a_switch();
    }
    let after = |one: &Scripted| one.asked().into_iter().find(|at| *at > told);
    until("all are asked", || {
        sentinels.iter().all(|one| after(one).is_some())
    })
    .await;
    let mut waited: Vec<_> = sentinels
        .iter()
        .filter_map(after)
        .map(|at| at.duration_since(told))
        .collect();
    waited.sort();
    // The middle one: a busy machine holds up one or the other.
    assert!(waited[2] < ms(250), "{waited:?}");
    drop(client);
}

#[tokio::test]
async fn t3_sentinels_that_disagree_at_one_epoch_change_nothing_until_a_majority_agrees() {
    let (one, other) = two().await;
    let sentinels = Scripted::several(3, one.addr(), 4).await;
    let builder = builder_of(&sentinels).deadline(ms(5_000));
    let client = builder.primary_proof(ms(1_500)).connect().await.unwrap();
    let other_port = other.addr();
    sentinels[0].names(other_port, 4);
    until("one dissents", || {
        contact(&client, sentinels[0].addr).dissents
    })
    .await;
    assert_eq!(believed(&client), Some(one.addr().to_string()));
    // A third one, of whom nobody knows anything: none of the three has a majority.
    sentinels[1].names(nobody().await, 4);
    until("two dissent", || {
        contact(&client, sentinels[1].addr).dissents
    })
    .await;
    assert_eq!(believed(&client), Some(one.addr().to_string()));
    assert_eq!(served_by(&client).await, one.addr().to_string());
    sentinels[1].names(other_port, 4);
    until("two of three", || {
        believed(&client) == Some(other_port.to_string())
    })
    .await;
    assert_eq!(served_by(&client).await, other_port.to_string());
}

#[tokio::test]
async fn t17_t31_sentinels_that_drip_know_nothing_or_name_what_is_no_name_cost_only_themselves() {
    let primary = server().await;
    // Five of nine are well, which is a majority.
    let mut sentinels = Scripted::several(9, primary.addr(), 1).await;
    sentinels[1].says(|says| says.manner = Manner::Drips);
    let ignorant =
        "-IDONTKNOW I have not enough information to reply. Please ask another Sentinel.";
    sentinels[2].says(|says| says.manner = Manner::Only(ignorant));
    sentinels[3].says(|says| says.primary = ("nowhere.invalid".into(), 6379));
    // It promises more than a sentinel has to say.
    sentinels[4].says(|says| says.manner = Manner::Only("$9000000000"));
    let client = builder_of(&sentinels)
        .resolver(Names::default())
        .connect_timeout(ms(500))
        .deadline(ms(5_000))
        .connect()
        .await
        .unwrap();
    assert_eq!(served_by(&client).await, primary.addr().to_string());
    for (at, words) in [
        (1, "took longer than 500ms"),
        (2, "IDONTKNOW I have not enough information"),
        (4, "is larger than the limit"),
    ] {
        let said = || {
            contact(&client, sentinels[at].addr)
                .error
                .unwrap_or_default()
        };
        until(words, || said().contains(words)).await;
        assert!(!said().contains("not a sentinel"), "{}", said());
    }
    assert!(contact(&client, sentinels[3].addr).dissents);
    assert_eq!(believed(&client), Some(primary.addr().to_string()));

    // All of them name what does not resolve: that is said, and over when it does.
    sentinels.truncate(1);
    sentinels[0].says(|says| says.primary = ("moved.invalid".into(), 1));
    let names = Names::default();
    let client = builder_of(&sentinels)
        .resolver(names.clone())
        .build()
        .unwrap();
    until_down_for(&client, "moved.invalid").await;
    names.leads("moved.invalid", primary.addr());
    until_state(&client, ConnectionState::Ready).await;
}

#[tokio::test]
async fn t26_whoever_answers_at_the_address_of_another_sentinel_is_not_heard_nor_followed() {
    let (primary, elsewhere) = two().await;
    let first = Scripted::start("first", primary.addr(), 1).await;
    // It has another id than the one that was known there, and the highest epoch of all.
    let stranger = Scripted::start("stranger", elsewhere.addr(), 99).await;
    first.says(|says| says.peers = vec![("known".into(), stranger.addr)]);
    let sentinels = [first];
    let client = builder_of(&sentinels).connect().await.unwrap();
    until("it is asked", || {
        let all = client.status().sentinel.unwrap().sentinels;
        let stranger = all
            .iter()
            .find(|one| one.address == stranger.addr.to_string());
        let error = stranger.and_then(|one| one.error.clone());
        error.is_some_and(|error| error.contains("not heard"))
    })
    .await;
    assert_eq!(believed(&client), Some(primary.addr().to_string()));
    assert_eq!(served_by(&client).await, primary.addr().to_string());
}
