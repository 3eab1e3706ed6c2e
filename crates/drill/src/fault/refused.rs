//! The commands that a server refuses in each state, by the flags of its own table of commands
//! (`COMMAND`, Redis 7.0). A test holds these lists against a real server. Scripts have no such
//! flags, as what they do is not known before: here they are taken to write.

use super::resp::is_called;

/// Flag `denyoom`: they may take memory.
const TAKE_MEMORY: [&str; 59] = [
    "APPEND",
    "BITFIELD",
    "BITOP",
    "BLMOVE",
    "BRPOPLPUSH",
    "COPY",
    "DECR",
    "DECRBY",
    "FUNCTION LOAD",
    "FUNCTION RESTORE",
    "GEOADD",
    "GEORADIUS",
    "GEORADIUSBYMEMBER",
    "GEOSEARCHSTORE",
    "GETSET",
    "HINCRBY",
    "HINCRBYFLOAT",
    "HMSET",
    "HSET",
    "HSETNX",
    "INCR",
    "INCRBY",
    "INCRBYFLOAT",
    "LINSERT",
    "LMOVE",
    "LPUSH",
    "LPUSHX",
    "LSET",
    "MSET",
    "MSETNX",
    "PFADD",
    "PFDEBUG",
    "PFMERGE",
    "PSETEX",
    "RESTORE",
    "RESTORE-ASKING",
    "RPOPLPUSH",
    "RPUSH",
    "RPUSHX",
    "SADD",
    "SDIFFSTORE",
    "SET",
    "SETBIT",
    "SETEX",
    "SETNX",
    "SETRANGE",
    "SINTERSTORE",
    "SORT",
    "SUNIONSTORE",
    "XADD",
    "XGROUP CREATE",
    "XGROUP CREATECONSUMER",
    "XSETID",
    "ZADD",
    "ZDIFFSTORE",
    "ZINCRBY",
    "ZINTERSTORE",
    "ZRANGESTORE",
    "ZUNIONSTORE",
];

/// Flag `write` without `denyoom`: they move or free.
const WRITE_WITHOUT_MEMORY: [&str; 49] = [
    "BLMPOP",
    "BLPOP",
    "BRPOP",
    "BZMPOP",
    "BZPOPMAX",
    "BZPOPMIN",
    "DEL",
    "EXPIRE",
    "EXPIREAT",
    "FLUSHALL",
    "FLUSHDB",
    "FUNCTION DELETE",
    "FUNCTION FLUSH",
    "GETDEL",
    "GETEX",
    "HDEL",
    "LMPOP",
    "LPOP",
    "LREM",
    "LTRIM",
    "MIGRATE",
    "MOVE",
    "PERSIST",
    "PEXPIRE",
    "PEXPIREAT",
    "RENAME",
    "RENAMENX",
    "RPOP",
    "SMOVE",
    "SPOP",
    "SREM",
    "SWAPDB",
    "UNLINK",
    "XACK",
    "XAUTOCLAIM",
    "XCLAIM",
    "XDEL",
    "XGROUP DELCONSUMER",
    "XGROUP DESTROY",
    "XGROUP SETID",
    "XREADGROUP",
    "XTRIM",
    "ZMPOP",
    "ZPOPMAX",
    "ZPOPMIN",
    "ZREM",
    "ZREMRANGEBYLEX",
    "ZREMRANGEBYRANK",
    "ZREMRANGEBYSCORE",
];

/// Flag `loading`: answered while the server reads its data. A command alone stands for all its
/// subcommands.
const ANSWERED_WHILE_LOADING: [&str; 44] = [
    "ACL",
    "AUTH",
    "CLIENT",
    "CLUSTER HELP",
    "COMMAND",
    "CONFIG",
    "DEBUG",
    "DISCARD",
    "ECHO",
    "EXEC",
    "FUNCTION HELP",
    "HELLO",
    "INFO",
    "LASTSAVE",
    "LATENCY",
    "MEMORY HELP",
    "MODULE HELP",
    "MONITOR",
    "MULTI",
    "OBJECT HELP",
    "PSUBSCRIBE",
    "PUBLISH",
    "PUBSUB",
    "PUNSUBSCRIBE",
    "QUIT",
    "READONLY",
    "READWRITE",
    "REPLCONF",
    "RESET",
    "ROLE",
    "SCRIPT HELP",
    "SELECT",
    "SHUTDOWN",
    "SLOWLOG",
    "SPUBLISH",
    "SSUBSCRIBE",
    "SUBSCRIBE",
    "SUNSUBSCRIBE",
    "TIME",
    "UNSUBSCRIBE",
    "UNWATCH",
    "WATCH",
    "XGROUP HELP",
    "XINFO HELP",
];

/// Flag `allow_busy`: answered while a script runs for too long.
const ANSWERED_WHILE_BUSY: [&str; 13] = [
    "AUTH",
    "DISCARD",
    "FUNCTION KILL",
    "FUNCTION STATS",
    "HELLO",
    "MULTI",
    "QUIT",
    "REPLCONF",
    "RESET",
    "SCRIPT KILL",
    "SHUTDOWN",
    "UNWATCH",
    "WATCH",
];

/// Flag `no_auth`: answered before a password was given.
const ANSWERED_WITHOUT_AUTH: [&str; 4] = ["AUTH", "HELLO", "QUIT", "RESET"];

const SCRIPTS: [&str; 3] = ["EVAL", "EVALSHA", "FCALL"];

pub(super) fn out_of_memory(args: &[&[u8]]) -> bool {
    is_one_of(args, &TAKE_MEMORY) || is_one_of(args, &SCRIPTS)
}

pub(super) fn read_only(args: &[&[u8]]) -> bool {
    out_of_memory(args) || is_one_of(args, &WRITE_WITHOUT_MEMORY)
}

pub(super) fn loading(args: &[&[u8]]) -> bool {
    !is_one_of(args, &ANSWERED_WHILE_LOADING)
}

pub(super) fn busy(args: &[&[u8]]) -> bool {
    !is_one_of(args, &ANSWERED_WHILE_BUSY)
}

pub(super) fn not_authenticated(args: &[&[u8]]) -> bool {
    !is_one_of(args, &ANSWERED_WITHOUT_AUTH)
}

fn is_one_of(args: &[&[u8]], names: &[&str]) -> bool {
    names.iter().any(|name| is_called(args, name))
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;
    use crate::process::Redis;

    /// The names of the server's commands, subcommands too, with their flags.
    fn flags(commands: &[Value], found: &mut Vec<(String, Vec<String>)>) {
        let text = |value: &Value| redis::from_redis_value::<String>(value.clone()).unwrap();
        for command in commands {
            let Value::Array(command) = command else {
                continue;
            };
            let (Value::Array(flags_of) | Value::Set(flags_of)) = &command[2] else {
                continue;
            };
            let name = text(&command[0]).to_uppercase().replace('|', " ");
            found.push((name, flags_of.iter().map(text).collect()));
            if let Some(Value::Array(subcommands)) = command.get(9) {
                flags(subcommands, found);
            }
        }
    }

    #[tokio::test]
    async fn d7_what_a_played_state_refuses_is_what_a_real_server_flags() {
        let redis = Redis::start().await.unwrap();
        let version = redis.command(&["INFO", "server"]).await.unwrap();
        let version: String = redis::from_redis_value(version).unwrap();
        let Value::Array(commands) = redis.command(&["COMMAND"]).await.unwrap() else {
            panic!("COMMAND answers with an array");
        };
        let mut known = Vec::new();
        flags(&commands, &mut known);
        assert!(known.len() > 300, "{}", known.len());
        // Later servers have more commands than the lists.
        let exact = version.contains("redis_version:7.0.");
        let mut wrong = Vec::new();
        for (name, flags) in &known {
            let words: Vec<_> = name.split(' ').map(str::as_bytes).collect();
            let has = |flag: &str| flags.iter().any(|has| has == flag);
            let is_container = known
                .iter()
                .any(|(other, _)| other.starts_with(&format!("{name} ")));
            if is_one_of(&words, &SCRIPTS) || is_container {
                continue;
            }
            for (state, refused, flagged) in [
                ("oom", out_of_memory(&words), has("denyoom")),
                ("readonly", read_only(&words), has("write")),
                ("loading", loading(&words), !has("loading")),
                ("busy", busy(&words), !has("allow_busy")),
                ("noauth", not_authenticated(&words), !has("no_auth")),
            ] {
                if refused != flagged && exact {
                    wrong.push((state, name));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
