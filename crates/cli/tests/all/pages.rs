//! The pages on design name tests: each of them is there, in the module that is named.

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn each_test_that_a_page_on_design_names_is_in_its_module() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut sources = Vec::new();
    collect(&root.join("crates"), &mut sources);
    let sources: Vec<(PathBuf, String)> = sources
        .into_iter()
        .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
        .collect();
    let (mut named, mut gone) = (0, Vec::new());
    for page in fs::read_dir(root.join("docs/design")).unwrap() {
        let page = page.unwrap().path();
        let text = fs::read_to_string(&page).unwrap();
        for (module, test) in tests_in(&text) {
            named += 1;
            let head = format!("fn {test}(");
            let is_there = sources.iter().any(|(path, text)| {
                let mut parts = path.iter().filter_map(|part| part.to_str());
                let of_module = parts.any(|part| part.trim_end_matches(".rs") == module);
                of_module && text.contains(&head)
            });
            if !is_there {
                gone.push(format!("{}: {module}::{test}", page.display()));
            }
        }
    }
    assert!(gone.is_empty(), "there is no such test: {gone:#?}");
    assert!(named > 60, "{named} are named, where there were more");
}

/// The tests in code spans of a page, as `module::name`, that begin with the number of a promise.
fn tests_in(page: &str) -> impl Iterator<Item = (&str, &str)> {
    page.split('`').skip(1).step_by(2).filter_map(|span| {
        let (modules, name) = span.rsplit_once("::")?;
        let module = modules.rsplit("::").find(|part| *part != "tests")?;
        let number = name
            .split('_')
            .next()?
            .strip_prefix(['c', 'd', 'k', 's', 't'])?;
        let is_test = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        is_test.then_some((module, name))
    })
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
}
