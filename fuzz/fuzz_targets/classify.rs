//! Any arguments are judged without panic, their keys lie among them, and a name is judged the same
//! in any case.

#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast_core::command::{classify, keys};

fuzz_target!(|data: &[u8]| {
    let args: Vec<&[u8]> = data.split(|&byte| byte == b' ').collect();
    let class = classify(args.iter().copied());
    let found = keys(args.iter().copied());
    assert_eq!(class.first_key, found.first().copied());
    assert!(found.iter().all(|&key| (1..args.len()).contains(&key)));

    let upper: Vec<Vec<u8>> = args.iter().map(|arg| arg.to_ascii_uppercase()).collect();
    assert_eq!(classify(upper.iter().map(Vec::as_slice)).name, class.name);
});
