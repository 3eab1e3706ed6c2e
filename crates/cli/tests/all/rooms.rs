//! Which module may use which. Two modules that use each other cannot be read, tested or moved one
//! by one; so within a crate no circle of modules is allowed but that of a parent and its child,
//! and between crates no arrow back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each crate from the bottom up, and the crates that it may use.
const CRATES: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("client", &["core"]),
    ("cache", &["core", "client"]),
    ("drill", &["core"]),
    ("server", &["core", "client", "cache", "drill"]),
    ("cli", &["core", "client", "cache", "drill", "server"]),
];

#[test]
fn no_circle_of_modules_but_of_parent_and_child() {
    let mut wrong = Vec::new();
    for (name, _) in CRATES {
        let circles = Modules::of_crate(&source_of(name)).circles();
        if !circles.is_empty() {
            wrong.push(format!(
                "modules of `{name}` use each other in circles: {circles:#?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_crate_uses_one_above_it() {
    for (name, below) in CRATES {
        let manifest = source_of(name).join("../Cargo.toml");
        let manifest = fs::read_to_string(manifest).unwrap();
        let dependencies = manifest.split("\n[dependencies]").nth(1).unwrap();
        let dependencies = dependencies.split("\n[").next().unwrap();
        for line in dependencies.lines() {
            let used = line.split(['.', ' ', '=']).next().unwrap();
            let used = match used {
                "steadfast" => "client",
                other => match other.strip_prefix("steadfast-") {
                    Some(used) => used,
                    None => continue,
                },
            };
            assert!(below.contains(&used), "`{name}` must not use `{used}`");
        }
    }
}

#[test]
fn circles_are_found_also_through_names_that_a_parent_hands_on() {
    let modules = Modules::of_texts([
        ("", "pub use b::Thing;\nmod a;\nmod b;\nmod c;\nmod d;"),
        ("a", "use crate::Thing;"),
        ("b", "fn f() { crate::c::g() }\npub struct Thing;"),
        ("c", "use crate::a::{self, X as Y};\nuse super::d;"),
        (
            "d",
            "// crate::a\nuse std::fmt;\n#[cfg(test)]\nmod tests { use crate::a; }",
        ),
        ("d::e", "use super::Z;\nuse crate::d;"),
    ]);
    let circle = ["a", "b", "c"].map(str::to_owned);
    assert_eq!(modules.circles(), [BTreeSet::from(circle)]);
}

fn source_of(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(name)
        .join("src")
}

/// A module by the names on the way to it from the root of its crate.
type ModulePath = Vec<String>;

/// The modules of one crate, each with its text.
struct Modules(BTreeMap<ModulePath, String>);

impl Modules {
    fn of_crate(source: &Path) -> Self {
        let mut found = BTreeMap::new();
        let mut folders = vec![(source.to_owned(), ModulePath::new())];
        while let Some((folder, path)) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let file = entry.unwrap().path();
                let stem = file.file_stem().unwrap().to_str().unwrap().to_owned();
                if stem == "tests" {
                    continue;
                }
                let module = match stem.as_str() {
                    "lib" | "main" | "mod" => path.clone(),
                    _ => [path.clone(), vec![stem]].concat(),
                };
                if file.is_dir() {
                    folders.push((file, module));
                } else if file.extension().is_some_and(|extension| extension == "rs") {
                    found.insert(module, without_tests(&fs::read_to_string(file).unwrap()));
                }
            }
        }
        assert!(found.len() > 5, "no modules in {}", source.display());
        Self(found)
    }

    fn of_texts<const N: usize>(texts: [(&str, &str); N]) -> Self {
        let all = texts.map(|(path, text)| {
            let path = path.split("::").filter(|name| !name.is_empty());
            (path.map(str::to_owned).collect(), without_tests(text))
        });
        Self(BTreeMap::from(all))
    }

    /// Children of one parent, with all that lies below them, that use each other in a circle.
    fn circles(&self) -> Vec<BTreeSet<String>> {
        let mut arrows: BTreeMap<ModulePath, BTreeSet<(String, String)>> = BTreeMap::new();
        for (module, text) in &self.0 {
            for used in paths_in(text) {
                let Some(target) = self.resolve(module, &used, 0) else {
                    continue;
                };
                let shared = module.iter().zip(&target).take_while(|(a, b)| a == b);
                let shared = shared.count();
                if let (Some(from), Some(to)) = (module.get(shared), target.get(shared)) {
                    let between = arrows.entry(module[..shared].to_vec()).or_default();
                    between.insert((from.clone(), to.clone()));
                }
            }
        }
        arrows.values().flat_map(circles_among).collect()
    }

    /// The module that a path means when it stands in `module`; `None` if it is of another crate.
    fn resolve(&self, module: &ModulePath, path: &[String], depth: usize) -> Option<ModulePath> {
        let (first, mut rest) = path.split_first()?;
        let mut at = match first.as_str() {
            "crate" => ModulePath::new(),
            "self" => module.clone(),
            "super" => module[..module.len().checked_sub(1)?].to_vec(),
            _ => {
                let child = [module.clone(), vec![first.clone()]].concat();
                self.0.contains_key(&child).then_some(child)?
            }
        };
        while let Some((next, behind)) = rest.split_first() {
            if next == "super" {
                at.pop()?;
            } else {
                let child = [at.clone(), vec![next.clone()]].concat();
                if !self.0.contains_key(&child) {
                    // A name of the module itself, or one that it hands on.
                    let text = self.0.get(&at)?;
                    let handed_on = uses_in(text)
                        .into_iter()
                        .find(|(_, name)| name == next)
                        .filter(|_| depth < 8);
                    let found = handed_on.and_then(|(path, _)| self.resolve(&at, &path, depth + 1));
                    return Some(found.unwrap_or(at));
                }
                at = child;
            }
            rest = behind;
        }
        Some(at)
    }
}

/// The sets of names that reach each other.
fn circles_among(arrows: &BTreeSet<(String, String)>) -> Vec<BTreeSet<String>> {
    let mut reach = arrows.clone();
    loop {
        let further: Vec<_> = reach
            .iter()
            .flat_map(|(from, over)| {
                let on = arrows.iter().filter(move |(start, _)| start == over);
                on.map(|(_, to)| (from.clone(), to.clone()))
            })
            .collect();
        let before = reach.len();
        reach.extend(further);
        if reach.len() == before {
            break;
        }
    }
    let in_circles = reach.iter().filter(|(from, to)| from == to);
    let sets: BTreeSet<BTreeSet<String>> = in_circles
        .map(|(name, _)| {
            let mutual = reach
                .iter()
                .filter(|(from, to)| from == name && reach.contains(&(to.clone(), from.clone())));
            mutual.map(|(_, to)| to.clone()).collect()
        })
        .collect();
    sets.into_iter().collect()
}

/// The text without comments and without the tests, which stand at its end.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let test = line.starts_with("#[cfg(test)]")
            || (line.starts_with("#[cfg(all(test") && !line.contains("any("));
        if test && lines.peek().is_some_and(|next| next.contains("mod ")) {
            if lines.peek().is_some_and(|next| next.ends_with(';')) {
                lines.next();
                continue;
            }
            break;
        }
        if !line.trim_start().starts_with("//") {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// Every path in the text that begins with `crate::` or `super::`, and every path of a `use`.
fn paths_in(text: &str) -> Vec<Vec<String>> {
    let mut paths: Vec<_> = uses_in(text).into_iter().map(|(path, _)| path).collect();
    for (start, statement) in statements(text) {
        if statement.is_some() {
            continue;
        }
        let piece = start;
        for root in ["crate::", "super::"] {
            for (at, _) in piece.match_indices(root) {
                let before = piece[..at].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || "_:$".contains(c)) {
                    continue;
                }
                let end = piece[at..].find(|c: char| !(c.is_alphanumeric() || "_:".contains(c)));
                let path = &piece[at..end.map_or(piece.len(), |end| at + end)];
                paths.push(names(path.trim_end_matches(':')));
            }
        }
    }
    paths
}

/// Every name that a `use` brings in, with the path that it stands for.
fn uses_in(text: &str) -> Vec<(Vec<String>, String)> {
    let mut uses = Vec::new();
    for (_, statement) in statements(text) {
        if let Some(statement) = statement {
            expand(statement, &[], &mut uses);
        }
    }
    uses
}

/// The text in pieces: those between `use` statements, and what stands in each of these.
fn statements(text: &str) -> Vec<(&str, Option<&str>)> {
    let mut pieces = Vec::new();
    let (mut at, mut begun) = (0, 0);
    for line in text.split_inclusive('\n') {
        let item = line.trim_start();
        let item = item.strip_prefix("pub").map_or(item, |rest| {
            let rest = rest.strip_prefix('(').and_then(|rest| rest.split_once(')'));
            rest.map_or(&item[3..], |(_, rest)| rest).trim_start()
        });
        if let Some(used) = item.strip_prefix("use ")
            && at >= begun
        {
            let from = at + line.len() - used.len();
            let end = text[from..].find(';').map_or(text.len(), |end| from + end);
            pieces.push((&text[begun..at], None));
            pieces.push(("", Some(&text[from..end])));
            begun = end;
        }
        at += line.len();
    }
    pieces.push((&text[begun.min(text.len())..], None));
    pieces
}

fn expand(tree: &str, before: &[String], uses: &mut Vec<(Vec<String>, String)>) {
    let tree = tree.trim();
    if let Some((path, group)) = tree.split_once('{') {
        let path = [before.to_vec(), names(path.trim().trim_end_matches("::"))].concat();
        let group = group.trim_end().trim_end_matches('}');
        let (mut depth, mut begun) = (0, 0);
        for (at, c) in group.char_indices().chain([(group.len(), ',')]) {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    expand(&group[begun..at], &path, uses);
                    begun = (at + 1).min(group.len());
                }
                _ => {}
            }
        }
        return;
    }
    let (path, name) = tree.split_once(" as ").unwrap_or((tree, ""));
    let mut path = [before.to_vec(), names(path)].concat();
    if path.len() > 1
        && path
            .last()
            .is_some_and(|last| last == "self" || last == "*")
    {
        path.pop();
    }
    if let Some(last) = path.last().cloned() {
        let name = if name.is_empty() {
            last
        } else {
            name.trim().to_owned()
        };
        uses.push((path, name));
    }
}

fn names(path: &str) -> Vec<String> {
    let names = path.split("::").map(str::trim);
    let names = names.filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}
