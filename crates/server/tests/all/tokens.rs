//! Every way we know in which a token lies (RFC 8725).

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
};
use serde_json::{Value as Json, json};

use crate::guarded::*;

#[tokio::test]
async fn s6_a_token_whose_claims_lie_is_refused_and_written_down() {
    let guarded = Guarded::hs().await;
    let seen = &mut 0;
    assert_eq!(
        guarded.status_with(&hs(&claims())).await.status,
        200,
        "the honest one"
    );

    let body = base64url(claims().to_string().as_bytes());
    let none = base64url(br#"{"alg":"none","typ":"JWT","kid":"dev"}"#);
    refused(&guarded, &format!("{none}.{body}."), "not_a_token", seen).await;
    let none = base64url(br#"{"alg":"NONE","typ":"JWT","kid":"dev"}"#);
    refused(
        &guarded,
        &format!("{none}.{body}.AAAA"),
        "not_a_token",
        seen,
    )
    .await;

    let with = |member: &str, value: Json| {
        let mut claims = claims();
        claims[member] = value;
        hs(&claims)
    };
    let without = |member: &str| {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(member);
        hs(&claims)
    };
    refused(&guarded, &with("exp", json!(now() - 60)), "expired", seen).await;
    refused(&guarded, &with("exp", json!("soon")), "missing_claim", seen).await;
    refused(
        &guarded,
        &with("nbf", json!(now() + 3600)),
        "not_yet_valid",
        seen,
    )
    .await;
    refused(&guarded, &with("iss", json!("them")), "wrong_issuer", seen).await;
    refused(
        &guarded,
        &with("aud", json!("another")),
        "wrong_audience",
        seen,
    )
    .await;
    refused(
        &guarded,
        &with("aud", json!(["another", "third"])),
        "wrong_audience",
        seen,
    )
    .await;
    refused(&guarded, &with("sub", json!("")), "missing_claim", seen).await;
    refused(
        &guarded,
        &with("sub", json!("x".repeat(300))),
        "missing_claim",
        seen,
    )
    .await;
    for claim in ["exp", "iss", "aud", "sub"] {
        refused(&guarded, &without(claim), "missing_claim", seen).await;
    }
}

#[tokio::test]
async fn s6_a_token_that_is_signed_by_another_key_is_refused_and_written_down() {
    let guarded = Guarded::hs().await;
    let seen = &mut 0;
    let other = EncodingKey::from_secret(&[7; 64]);
    refused(
        &guarded,
        &signed(Algorithm::HS256, "dev", &claims(), &other),
        "bad_signature",
        seen,
    )
    .await;
    refused(
        &guarded,
        &signed(Algorithm::HS256, "nobody", &claims(), &other),
        "unknown_key",
        seen,
    )
    .await;
    let same = EncodingKey::from_secret(SECRET.as_bytes());
    refused(
        &guarded,
        &signed(Algorithm::HS512, "dev", &claims(), &same),
        "wrong_algorithm",
        seen,
    )
    .await;
    let mut honest = hs(&claims());
    honest.truncate(honest.rfind('.').unwrap() + 1);
    refused(&guarded, &honest, "bad_signature", seen).await;
    let mut critical = Header::new(Algorithm::HS256);
    critical.kid = Some("dev".to_owned());
    critical.crit = Some(vec!["exp".to_owned()]);
    refused(
        &guarded,
        &encode(&critical, &claims(), &same).unwrap(),
        "critical_header",
        seen,
    )
    .await;
    // A key that the token brings itself, or an address to fetch it from, is not looked at.
    let mut brought = Header::new(Algorithm::HS256);
    brought.jku = Some("http://127.0.0.1:1/keys".to_owned());
    brought.jwk = Some(Jwk::from_encoding_key(&other, Algorithm::HS256).unwrap());
    refused(
        &guarded,
        &encode(&brought, &claims(), &other).unwrap(),
        "bad_signature",
        seen,
    )
    .await;

    refused(&guarded, &"a".repeat(9000), "too_long", seen).await;
    for garbage in ["", ".", "..", "a.b.c", "eyJ.eyJ.eyJ", "....."] {
        let reply = guarded.status_with(garbage).await;
        assert_eq!(reply.status, 401, "{garbage:?}");
    }
}

#[tokio::test]
async fn s6_a_token_is_taken_from_one_header_and_from_nowhere_else() {
    let guarded = Guarded::hs().await;
    let honest = hs(&claims());
    assert_eq!(
        guarded
            .service
            .get(&format!("/v1/status?access_token={honest}"))
            .await
            .status,
        401
    );
    let bearer = format!("Bearer {honest}");
    let twice = [
        ("authorization", bearer.as_str()),
        ("authorization", bearer.as_str()),
    ];
    assert_eq!(
        guarded.service.get_with("/v1/status", &twice).await.status,
        401
    );
}

#[tokio::test]
async fn s6_a_token_without_a_role_of_ours_is_forbidden() {
    let guarded = Guarded::hs().await;
    for roles in [
        json!([]),
        json!("root"),
        json!(["root", 7]),
        json!({"admin": true}),
        Json::Null,
    ] {
        let mut claims = claims();
        claims["roles"] = roles.clone();
        let reply = guarded.status_with(&hs(&claims)).await;
        assert_eq!(reply.status, 403, "{roles}");
        assert_eq!(reply.json()["type"], "/problems/forbidden");
    }
    let lines = guarded.audit(5).await;
    assert!(
        lines
            .iter()
            .all(|line| line["outcome"] == "forbidden" && line["reason"] == "no_role")
    );
}

#[tokio::test]
async fn s6_each_kind_of_key_signs_for_its_own_algorithm_only() {
    let folder = tempfile::tempdir().unwrap();
    let kinds = [
        ("rsa", "RS256", Algorithm::RS256, &PKCS_RSA_SHA256),
        ("p256", "ES256", Algorithm::ES256, &PKCS_ECDSA_P256_SHA256),
        ("p384", "ES384", Algorithm::ES384, &PKCS_ECDSA_P384_SHA384),
        ("ed", "EdDSA", Algorithm::EdDSA, &PKCS_ED25519),
    ];
    let mut auth = base("");
    let mut pairs = Vec::new();
    for (name, algorithm, code, kind) in kinds {
        let pair = KeyPair::generate_for(kind).unwrap();
        let public = pem(name, &folder, &pair.public_key_pem());
        auth.push_str(&format!(
            "[auth.keys.{name}]\nalgorithm = \"{algorithm}\"\nfile = \"{public}\"\n"
        ));
        let private = pair.serialize_pem();
        let key = match code {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(private.as_bytes()),
            Algorithm::EdDSA => EncodingKey::from_ed_pem(private.as_bytes()),
            _ => EncodingKey::from_ec_pem(private.as_bytes()),
        };
        pairs.push((name, code, key.unwrap(), pair.public_key_pem()));
    }
    let guarded = Guarded::with(&auth).await;
    let mut seen = 0;
    for (name, code, key, public) in &pairs {
        let good = guarded
            .status_with(&signed(*code, name, &claims(), key))
            .await;
        assert_eq!(good.status, 200, "{name}: {}", good.text());
        // The old confusion: the public key, which everyone has, taken for a shared secret.
        let confused = EncodingKey::from_secret(public.as_bytes());
        let forged = signed(Algorithm::HS256, name, &claims(), &confused);
        refused(&guarded, &forged, "wrong_algorithm", &mut seen).await;
        let trimmed = EncodingKey::from_secret(public.trim_end().as_bytes());
        let forged = signed(Algorithm::HS256, name, &claims(), &trimmed);
        refused(&guarded, &forged, "wrong_algorithm", &mut seen).await;
        // And one's own key under another's name.
        for (other, ..) in pairs.iter().filter(|(other, ..)| other != name) {
            let forged = signed(*code, other, &claims(), key);
            refused(&guarded, &forged, "wrong_algorithm", &mut seen).await;
        }
    }
    // With several keys, a token that names none is not tried against all.
    let nameless = encode(&Header::new(Algorithm::RS256), &claims(), &pairs[0].2).unwrap();
    assert_eq!(guarded.status_with(&nameless).await.status, 401);
}

/// The end of an event stream that was opened with a token, once it comes.
async fn ended(guarded: &Guarded, token: &str) {
    let url = guarded.service.url("/v1/events");
    let request = hyper::Request::get(url).header("authorization", format!("Bearer {token}"));
    let request = request.body(http_body_util::Full::default()).unwrap();
    // The whole of its body is waited for, and has an end.
    let reply = guarded.service.send(request).await;
    assert_eq!(reply.status, 200);
    assert!(!reply.body.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_a_stream_of_events_ends_with_the_token_that_opened_it() {
    let keys =
        format!("leeway = \"0s\"\n[auth.keys.dev]\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n");
    let guarded = Guarded::with(&base(&keys)).await;
    let mut claims = claims();
    claims["exp"] = json!(now() + 3);
    ended(&guarded, &hs(&claims)).await;
    assert!(now() > claims["exp"].as_u64().unwrap(), "and not before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_a_stream_of_events_ends_with_the_key_that_signed_its_token() {
    let (first, second) = (ec(), ec());
    let provider = Provider::start(published(&[("one", Algorithm::ES256, &first)])).await;
    let auth = base(&format!(
        "jwks = \"{}\"\njwks_cooldown = \"1ms\"\njwks_refresh = \"50ms\"\n",
        provider.url
    ));
    let guarded = Guarded::with(&auth).await;
    let token = signed(Algorithm::ES256, "one", &claims(), &first);
    assert_eq!(guarded.status_with(&token).await.status, 200);
    let document = provider.document.clone();
    tokio::join!(ended(&guarded, &token), async {
        steadfast_drill::waiting::until("the stream is open", || {
            guarded.service.status()["service"]["subscribers"] == 1
        })
        .await;
        *document.lock() = published(&[("two", Algorithm::ES256, &second)]);
    });
}
