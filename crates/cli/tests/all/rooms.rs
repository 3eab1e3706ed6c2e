//! No circle of modules within a crate, parent and child aside: what two modules need lies below both, so that each can be read by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A module, by its names from the root of its crate.
type Module = Vec<String>;

/// The crates that are held to it.
const CRATES: [&str; 3] = ["cli", "core", "drill"];

#[test]
fn no_module_imports_one_that_imports_it() {
    for name in CRATES {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .join(name)
            .join("src");
        let imports = imports(&source);
        assert!(!imports.is_empty(), "{}", source.display());
        let of_strangers = imports
            .iter()
            .filter(|(from, to)| !from.starts_with(to) && !to.starts_with(from));
        let circle = circle(of_strangers.cloned().collect());
        assert!(circle.is_empty(), "{name}: modules in a circle: {circle:?}");
        // A room is a module of the root with all that is below it.
        let of_rooms = imports.iter().filter_map(|(from, to)| {
            let (from, to) = (from.first()?, to.first()?);
            (from != to).then(|| (vec![from.clone()], vec![to.clone()]))
        });
        let circle = self::circle(of_rooms.collect());
        assert!(circle.is_empty(), "{name}: rooms in a circle: {circle:?}");
    }
}

#[test]
fn a_circle_is_found_and_what_hangs_on_it_is_not_named() {
    let edge = |from: &str, to: &str| (vec![from.to_owned()], vec![to.to_owned()]);
    let edges = ["a b", "b c", "c a", "x a", "c y"].map(|pair| {
        let (from, to) = pair.split_once(' ').unwrap();
        edge(from, to)
    });
    let named: Vec<_> = circle(edges.into()).into_iter().flatten().collect();
    assert_eq!(named, ["a", "b", "c"]);
    let paths = expanded("crate::{a::{b, c as d}, e::*}");
    assert_eq!(paths, ["crate::a::b", "crate::a::c", "crate::e::*"]);
}

/// Which module imports which.
fn imports(source: &Path) -> BTreeSet<(Module, Module)> {
    let mut files = BTreeMap::new();
    gather(source, &Vec::new(), &mut files);
    let mut imports = BTreeSet::new();
    for (module, file) in &files {
        let text = std::fs::read_to_string(file).unwrap();
        // Tests may look wherever they like.
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let code: String = code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .flat_map(|line| [line, "\n"])
            .collect();
        for path in paths(&code) {
            if let Some(target) = resolved(&path, module, &files)
                && target != *module
            {
                imports.insert((module.clone(), target));
            }
        }
    }
    imports
}

fn gather(folder: &Path, module: &Module, files: &mut BTreeMap<Module, PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let mut below = module.clone();
        below.push(name.clone());
        if path.is_dir() {
            gather(&path, &below, files);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let is_root = ["lib", "main", "mod"].contains(&name.as_str());
            files.insert(if is_root { module.clone() } else { below }, path);
        }
    }
}

/// All paths of a module's code that begin at the root of the crate or at a parent.
fn paths(code: &str) -> Vec<String> {
    let uses = code
        .split("use ")
        .skip(1)
        .filter_map(|rest| rest.split_once(';'));
    let mut paths: Vec<_> = uses.flat_map(|(tree, _)| expanded(tree)).collect();
    for root in ["crate::", "super::"] {
        let inline = code.match_indices(root).map(|(at, _)| {
            let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            code[at..].chars().take_while(|c| is_path(*c)).collect()
        });
        paths.extend(inline);
    }
    paths
}

/// The paths of a tree such as `crate::{a, b::{c, d}}`.
fn expanded(tree: &str) -> Vec<String> {
    let Some((prefix, rest)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap().trim();
        return vec![path.to_owned()];
    };
    let inner = rest.rsplit_once('}').map_or(rest, |(inner, _)| inner);
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for letter in inner.chars() {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        if letter == ',' && depth == 0 {
            parts.push(String::new());
        } else {
            parts.last_mut().unwrap().push(letter);
        }
    }
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    let whole = parts.flat_map(|part| expanded(part));
    whole
        .map(|path| format!("{}{path}", prefix.trim()))
        .collect()
}

/// The module that a path leads to or into.
fn resolved(path: &str, from: &Module, files: &BTreeMap<Module, PathBuf>) -> Option<Module> {
    let mut names = path.split("::").peekable();
    let mut module = match *names.peek()? {
        "crate" => {
            names.next();
            Module::new()
        }
        "super" | "self" => from.clone(),
        _ => return None,
    };
    while let Some(name) = names.next_if(|name| ["super", "self"].contains(name)) {
        if name == "super" {
            module.pop();
        }
    }
    for name in names {
        module.push(name.to_owned());
        if !files.contains_key(&module) {
            module.pop();
            break;
        }
    }
    files.contains_key(&module).then_some(module)
}

/// The modules that lie on circles: what is left when those are taken away that import nothing of the rest, or that nothing of it imports.
fn circle(mut edges: BTreeSet<(Module, Module)>) -> BTreeSet<Module> {
    loop {
        let from: BTreeSet<_> = edges.iter().map(|(from, _)| from.clone()).collect();
        let to: BTreeSet<_> = edges.iter().map(|(_, to)| to.clone()).collect();
        let before = edges.len();
        edges.retain(|(one, other)| to.contains(one) && from.contains(other));
        if edges.len() == before {
            return from;
        }
    }
}
