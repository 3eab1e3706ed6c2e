//! Addresses as they are given on the command line. Whoever gives something else may have given a
//! password, so that what is no address is refused without being quoted.

use steadfast_server::config::{REDIS_SCHEMES, SecretUrl, UrlMistake};

use crate::failure::{Failure, Status};

/// Refuses what is not host:port, by the flag's name.
pub(crate) fn host_and_port(flag: &str, text: &str) -> Result<(), Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]%".contains(c);
    let port = text.rsplit_once(':').and_then(|(host, port)| {
        let fits = !host.is_empty() && text.chars().all(plain);
        port.parse::<u16>().ok().filter(|_| fits)
    });
    if port.is_some() {
        return Ok(());
    }
    let cause = format!("{flag} is not an address of the form host:port");
    let hint = "a URL's user, password and path, or what follows the first comma of a connection string, is left out";
    Err(Failure::new(Status::Usage, cause).hint(hint))
}

/// Refuses what is no URL of a Redis.
pub(crate) fn redis_url(text: &str) -> Result<(), Failure> {
    match SecretUrl::of(text, REDIS_SCHEMES) {
        Ok(_) => Ok(()),
        Err(UrlMistake { message, help, .. }) => {
            Err(Failure::new(Status::Usage, format_args!("the URL {message}")).hint(help))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d7_only_a_host_and_a_port_are_an_address() {
        for text in [
            "127.0.0.1:6379",
            "[::1]:6379",
            "cache.example:1",
            "[fe80::1%eth0]:6379",
        ] {
            assert!(host_and_port("--target", text).is_ok(), "{text}");
        }
        for text in [
            "127.0.0.1",
            ":6379",
            "redis://:hunter2@h:6379",
            "h:6380,password=hunter2,ssl=True",
            "u:hunter2@h:6379",
            "h:port",
        ] {
            let refused = host_and_port("--target", text).unwrap_err();
            assert!(!format!("{refused:?}").contains("hunter2"), "{text}");
        }
    }
}
