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
        if get.is_null() || needs {
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
