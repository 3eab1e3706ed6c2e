//! Advice about a connection that could not be had. The client says what happened; here is what
//! a person may try next.

/// The hint for a cause, if there is more to say than the cause does.
pub(super) fn hint(cause: &str) -> Option<&'static str> {
    let says = |words: &str| cause.contains(words);
    Some(if says("NOAUTH") {
        "the server wants a password: redis://user:password@host:port"
    } else if says("WRONGPASS")
        || says("invalid username-password")
        || says("without any password configured")
    {
        "look at user and password in the URL (special characters as %XX), and at ACL LIST on the server"
    } else if says("NOPERM") {
        "the user may connect, but not run this; see ACL LIST and ACL LOG on the server"
    } else if says("handshake took longer") {
        "it accepts connections and answers nothing: the server is frozen or overloaded, or a firewall swallows the answers"
    } else if says("tcp took longer") {
        "nothing answers, not even a refusal: a firewall, a security group, or a wrong address"
    } else if says("dns took longer") || says("cannot resolve") {
        "look at the name, and at the resolver of this machine (getent hosts NAME)"
    } else if says("refused") && says("connect to") {
        "is the server running, and on this port? (redis-cli -h HOST -p PORT ping)"
    } else if says("is loading") {
        "it reads its data from disk after a start; try again when INFO persistence says loading:0"
    } else if says("is a replica") {
        "use the address of the primary (INFO replication on the replica names it)"
    } else if says("maxclients") {
        "close idle clients (CLIENT LIST) or raise maxclients on the server"
    } else {
        return None;
    })
}
