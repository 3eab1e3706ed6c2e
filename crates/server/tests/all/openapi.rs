use serde_json::Value as Json;

use crate::harness::Service;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_the_interface_is_described_as_it_is_configured() {
    let service = Service::demo().await;
    let api = service.get("/openapi.json").await.json();
    assert!(api["openapi"].as_str().unwrap().starts_with("3.1"));
    let search = &api["paths"]["/v1/queries/search_users"]["get"];
    let q = search["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .find(|p| p["name"] == "q")
        .unwrap();
    assert_eq!(
        (&q["required"], &q["schema"]["maxLength"]),
        (&true.into(), &64.into())
    );
    let create = &api["paths"]["/v1/statements/create_user"]["post"]["requestBody"]["content"];
    let schema = &create["application/json"]["schema"];
    assert_eq!(
        schema["required"],
        serde_json::json!(["name", "phone_number"])
    );
    assert_eq!(schema["additionalProperties"], false);

    // As it is answered: once the drill is over, or not in time.
    let stop = &api["paths"]["/v1/drills/{id}"]["delete"]["responses"];
    assert!(stop["202"].is_null() && stop["504"].is_object(), "{stop}");
    let schema = &stop["200"]["content"]["application/json"]["schema"];
    assert!(schema.is_object(), "{stop}");
    let depth = &api["paths"]["/v1/history"]["get"]["parameters"][0]["schema"];
    assert_eq!(depth["maximum"], 1024, "as many as are kept");

    for reference in references(&api) {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(api.pointer(pointer).is_some(), "{reference}");
    }
    // Whatever is described as a GET without parameters answers as described.
    for (path, item) in api["paths"].as_object().unwrap() {
        let get = &item["get"];
        let needs = get["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|p| p["required"] == true);
        let streams = get["responses"]["200"]["content"]["text/event-stream"].is_object();
        if get.is_null() || needs || streams {
            continue;
        }
        let reply = service.get(path).await;
        let described = &get["responses"][reply.status.as_str()]["content"];
        let kind = reply
            .header("content-type")
            .split(';')
            .next()
            .unwrap()
            .to_owned();
        assert!(
            described[&kind].is_object(),
            "{path} answered {} {kind}",
            reply.status
        );
    }
}

/// The page itself and its files are not part of the interface.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_every_address_is_described() {
    let service = Service::demo().await;
    let api = service.get("/openapi.json").await.json();
    for rule in steadfast_server::auth::RULES {
        if ["/", "/assets/{*path}", "/docs", "/docs/{*path}"].contains(&rule.path) {
            continue;
        }
        let path = match rule.path {
            "/v1/queries/{name}" => "/v1/queries/search_users",
            "/v1/statements/{name}" => "/v1/statements/create_user",
            other => other,
        };
        let operation = &api["paths"][path][rule.method.to_ascii_lowercase()];
        assert!(operation["summary"].is_string(), "{} {path}", rule.method);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_the_page_of_the_interface_asks_nobody_else() {
    let service = Service::demo().await;
    let page = service.get("/docs").await;
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy");
    assert!(
        policy.contains("default-src 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );
    let html = page.text();
    // The policy lets nothing inline run or colour: it would be seen here only, not by a person.
    assert!(!html.contains("style=") && !html.contains("<style") && !html.contains(" onclick"));
    let mut kinds = Vec::new();
    for attribute in ["src=\"", "href=\""] {
        for part in html.split(attribute).skip(1) {
            let address = part.split('"').next().unwrap();
            if address.starts_with('#') {
                continue;
            }
            assert!(
                address.starts_with('/') && !address.starts_with("//"),
                "{address}"
            );
            let file = service.get(address).await;
            assert_eq!(file.status, 200, "{address}");
            assert!(!file.text().contains("https://"), "{address}");
            kinds.push(file.header("content-type").to_owned());
        }
    }
    for kind in ["text/javascript", "text/css", "application/json"] {
        assert!(
            kinds.iter().any(|found| found.starts_with(kind)),
            "no {kind}"
        );
    }
    assert_eq!(service.get("/docs/../Cargo.toml").await.status, 404);
    assert_eq!(service.get("/docs/none.js").await.status, 404);
}

fn references(json: &Json) -> Vec<String> {
    match json {
        Json::Object(members) => members
            .iter()
            .flat_map(|(name, value)| match value.as_str() {
                Some(reference) if name == "$ref" => vec![reference.to_owned()],
                _ => references(value),
            })
            .collect(),
        Json::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}
