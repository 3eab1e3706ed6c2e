//! Every command of Redis 7, and what later servers added, sorted by what it does.
//!
//! Grouped rather than alphabetical, so that each judgement stands once with its reason beside it,
//! and a command in the wrong company is seen. A perfect order for people is a poor one for
//! look-up, so an index by hash is built from it at compile time.
//!
//! Judgements lean to the safe side: where a repeat is harmless on some servers or with some data
//! only, the command is called the worse of the two.

use super::Effect::{Accumulating, Conditional, Control, LastWins, Opaque, Read};
use super::effect::Rule::{self, Is};
use super::keys::{
    ALL, ALL_BUT_LAST, COUNT_1, COUNT_2, FIRST, KeySpec, NONE, PAIRS, SECOND, STORE_COUNT,
    STORE_SECOND, TWO,
};
use super::wait::Wait;
use super::{Alternative, Errors, Shared};

/// Commands that share all their judgements.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) rule: Rule,
    pub(super) keys: KeySpec,
    pub(super) wait: Wait,
    pub(super) shared: Shared,
    pub(super) errors: Errors,
    pub(super) names: &'static [&'static str],
}

const fn group(rule: Rule, keys: KeySpec, names: &'static [&'static str]) -> Group {
    Group {
        rule,
        keys,
        wait: Wait::Never,
        shared: Shared::Yes,
        errors: Errors::Refuse,
        names,
    }
}

impl Group {
    const fn waits(mut self, wait: Wait) -> Self {
        self.wait = wait;
        self
    }

    const fn fails(mut self, errors: Errors) -> Self {
        self.errors = errors;
        self
    }

    const fn refused(mut self, instead: Alternative) -> Self {
        self.shared = Shared::No(instead);
        self
    }
}

/// The entry that stands in for a command that the table does not know.
pub(super) static UNKNOWN: Group =
    group(Is(Opaque), NONE, &["UNKNOWN"]).fails(Errors::OfNoKnownCommand);

#[rustfmt::skip]
pub(super) static GROUPS: &[Group] = &[
    // Reading. TOUCH and OBJECT move no more than the eviction clock.
    group(Is(Read), FIRST, &[
        "GET", "GETRANGE", "SUBSTR", "STRLEN", "GETBIT", "BITCOUNT", "BITPOS", "BITFIELD_RO", "TTL",
        "PTTL", "EXPIRETIME", "PEXPIRETIME", "TYPE", "DUMP", "HGET", "HMGET", "HGETALL", "HKEYS",
        "HVALS", "HLEN", "HEXISTS", "HSTRLEN", "HRANDFIELD", "HSCAN", "HTTL", "HPTTL",
        "HEXPIRETIME", "HPEXPIRETIME", "LINDEX", "LLEN", "LPOS", "LRANGE", "SCARD", "SISMEMBER",
        "SMISMEMBER", "SMEMBERS", "SRANDMEMBER", "SSCAN", "ZCARD", "ZCOUNT", "ZLEXCOUNT", "ZMSCORE",
        "ZRANDMEMBER", "ZRANGE", "ZRANGEBYLEX", "ZRANGEBYSCORE", "ZRANK", "ZREVRANGE",
        "ZREVRANGEBYLEX", "ZREVRANGEBYSCORE", "ZREVRANK", "ZSCAN", "ZSCORE", "GEODIST", "GEOHASH",
        "GEOPOS", "GEORADIUS_RO", "GEORADIUSBYMEMBER_RO", "GEOSEARCH", "SORT_RO", "XLEN",
        "XPENDING", "XRANGE", "XREVRANGE", "DIGEST", "VCARD", "VDIM", "VEMB", "VGETATTR", "VINFO",
        "VISMEMBER", "VLINKS", "VRANDMEMBER", "VRANGE", "VSIM",
    ]),
    group(Is(Read), TWO, &["LCS"]),
    group(Is(Read), ALL, &["MGET", "EXISTS", "TOUCH", "SDIFF", "SINTER", "SUNION", "PFCOUNT"]),
    group(Is(Read), COUNT_1, &["SINTERCARD", "ZDIFF", "ZINTER", "ZINTERCARD", "ZUNION"]),
    group(Is(Read), SECOND, &[
        "OBJECT ENCODING", "OBJECT FREQ", "OBJECT IDLETIME", "OBJECT REFCOUNT", "MEMORY USAGE",
        "XINFO STREAM", "XINFO GROUPS", "XINFO CONSUMERS",
    ]),
    group(Is(Read), NONE, &[
        "KEYS", "SCAN", "RANDOMKEY", "DBSIZE", "PING", "ECHO", "TIME", "INFO", "ROLE", "LASTSAVE",
        "LOLWUT", "ACL CAT", "ACL DRYRUN", "ACL GENPASS", "ACL GETUSER", "ACL HELP", "ACL LIST",
        "ACL USERS", "ACL WHOAMI", "CLIENT GETNAME", "CLIENT GETREDIR", "CLIENT HELP", "CLIENT ID",
        "CLIENT INFO", "CLIENT LIST", "CLIENT TRACKINGINFO", "CLUSTER COUNT-FAILURE-REPORTS",
        "CLUSTER COUNTKEYSINSLOT", "CLUSTER GETKEYSINSLOT", "CLUSTER HELP", "CLUSTER INFO",
        "CLUSTER KEYSLOT", "CLUSTER LINKS", "CLUSTER MYID", "CLUSTER MYSHARDID", "CLUSTER NODES",
        "CLUSTER REPLICAS", "CLUSTER SHARDS", "CLUSTER SLAVES", "CLUSTER SLOT-STATS",
        "CLUSTER SLOTS", "COMMAND COUNT", "COMMAND DOCS", "COMMAND GETKEYS",
        "COMMAND GETKEYSANDFLAGS", "COMMAND HELP", "COMMAND INFO", "COMMAND LIST", "COMMANDLOG GET",
        "COMMANDLOG HELP", "COMMANDLOG LEN", "CONFIG GET", "CONFIG HELP", "FUNCTION DUMP",
        "FUNCTION HELP", "FUNCTION LIST", "FUNCTION STATS", "LATENCY DOCTOR", "LATENCY GRAPH",
        "LATENCY HELP", "LATENCY HISTOGRAM", "LATENCY HISTORY", "LATENCY LATEST", "MEMORY DOCTOR",
        "MEMORY HELP", "MEMORY MALLOC-STATS", "MEMORY STATS", "MODULE HELP", "MODULE LIST",
        "OBJECT HELP", "PUBSUB CHANNELS", "PUBSUB HELP", "PUBSUB NUMPAT", "PUBSUB NUMSUB",
        "PUBSUB SHARDCHANNELS", "PUBSUB SHARDNUMSUB", "SCRIPT EXISTS", "SCRIPT HELP", "SCRIPT SHOW",
        "SLOWLOG GET", "SLOWLOG HELP", "SLOWLOG LEN", "XGROUP HELP", "XINFO HELP",
    ]),
    // Scripts that the server itself holds to reading.
    group(Is(Read), COUNT_2, &["EVAL_RO", "EVALSHA_RO", "FCALL_RO"])
        .fails(Errors::ProveNothing),
    group(Rule::XRead, KeySpec::Streams, &["XREAD"]).waits(Wait::BlockOption),
    // The last one wins: the same state and the same answer. SETRANGE answers with a length that a
    // repeat does not change. A union or intersection stored over one of its sources stays what it
    // is.
    group(Rule::Overwrite, FIRST, &["SETEX", "PSETEX", "HMSET"]),
    group(Rule::Overwrite, PAIRS, &["MSET"]),
    group(Is(LastWins), FIRST, &["SETRANGE", "VSETATTR"]),
    group(Is(LastWins), ALL, &["SUNIONSTORE", "SINTERSTORE", "PFMERGE"]),
    // A loaded script has the same digest each time.
    group(Rule::Overwrite, NONE, &["SCRIPT LOAD"]),
    // By their arguments.
    group(Rule::Set, FIRST, &["SET"]),
    group(Rule::GetEx, FIRST, &["GETEX", "HGETEX"]),
    group(Rule::HSetEx, FIRST, &["HSETEX"]),
    group(Rule::MSetEx, KeySpec::Count { at: 1, step: 2, store: false }, &["MSETEX"]),
    group(Rule::Expire { millis: false }, FIRST, &["EXPIRE", "HEXPIRE"]),
    group(Rule::Expire { millis: true }, FIRST, &["PEXPIRE", "HPEXPIRE"]),
    group(Rule::Replace { from: 3 }, TWO, &["COPY"]),
    group(Rule::Replace { from: 4 }, FIRST, &["RESTORE", "RESTORE-ASKING"]),
    group(Rule::FunctionLoad, NONE, &["FUNCTION LOAD"]),
    group(Rule::FunctionRestore, NONE, &["FUNCTION RESTORE"]),
    group(Rule::BitField, FIRST, &["BITFIELD"]),
    group(Rule::LTrim, FIRST, &["LTRIM"]),
    group(Rule::LRem, FIRST, &["LREM"]),
    group(Rule::ZAdd, FIRST, &["ZADD"]),
    group(Rule::ZRemRangeByRank, FIRST, &["ZREMRANGEBYRANK"]),
    group(Rule::XAdd, FIRST, &["XADD"]),
    group(Rule::AclLog, NONE, &["ACL LOG"]),
    // A result stored over one of its own sources is another one when computed again.
    group(Rule::Store, ALL, &["SDIFFSTORE"]),
    group(Rule::Store, STORE_SECOND, &["BITOP"]),
    group(Rule::Store, TWO, &["ZRANGESTORE", "GEOSEARCHSTORE"]),
    group(Rule::Store, STORE_COUNT, &["ZDIFFSTORE", "ZINTERSTORE", "ZUNIONSTORE"]),
    group(Rule::StoreOption, KeySpec::Sort, &["SORT"]),
    group(Rule::StoreOption, KeySpec::GeoRadius { options: 6 }, &["GEORADIUS"]),
    group(Rule::StoreOption, KeySpec::GeoRadius { options: 5 }, &["GEORADIUSBYMEMBER"]),
    // The answer counts what was changed, or tells what was there before, or is an error the second
    // time.
    group(Is(Conditional), FIRST, &[
        "SETNX", "GETSET", "SETBIT", "PERSIST", "MOVE", "HSET", "HSETNX", "HDEL", "HPERSIST",
        "SADD", "SREM", "ZREM", "ZREMRANGEBYLEX", "ZREMRANGEBYSCORE", "GEOADD", "PFADD", "XACK",
        "XACKDEL", "XDEL", "XDELEX", "XTRIM", "DELEX", "DELIFEQ", "VADD", "VREM",
    ]),
    // Whether the moment has passed, and the key with it, cannot be told without a clock.
    group(Is(Conditional), FIRST, &["EXPIREAT", "PEXPIREAT", "HEXPIREAT", "HPEXPIREAT"]),
    // Even a copy: it goes to another server, where nothing keeps a late one from being applied.
    group(Is(Conditional), KeySpec::Migrate, &["MIGRATE"]).fails(Errors::MayFollowAPart),
    group(Is(Conditional), TWO, &["RENAME", "RENAMENX", "SMOVE"]),
    group(Is(Conditional), ALL, &["DEL", "UNLINK"]),
    group(Is(Conditional), PAIRS, &["MSETNX"]),
    group(Is(Conditional), SECOND, &[
        "XGROUP CREATE", "XGROUP CREATECONSUMER", "XGROUP DELCONSUMER", "XGROUP DESTROY",
    ]),
    group(Is(Conditional), NONE, &["FUNCTION DELETE"]),
    // Once more each time. What is taken out is gone with the lost answer, so a repeat takes the
    // next one. Claiming and reading as a group count the deliveries. The index of LSET is another
    // element's once something was pushed.
    group(Is(Accumulating), FIRST, &[
        "INCR", "INCRBY", "INCRBYFLOAT", "DECR", "DECRBY", "APPEND", "GETDEL", "HINCRBY",
        "HINCRBYFLOAT", "HGETDEL", "LPUSH", "LPUSHX", "RPUSH", "RPUSHX", "LINSERT", "LPOP", "RPOP",
        "LSET", "SPOP", "ZINCRBY", "ZPOPMAX", "ZPOPMIN", "XCLAIM", "XAUTOCLAIM", "SPUBLISH",
    ]),
    group(Is(Accumulating), TWO, &["LMOVE", "RPOPLPUSH"]),
    group(Is(Accumulating), COUNT_1, &["LMPOP", "ZMPOP"]),
    group(Is(Accumulating), NONE, &["PUBLISH", "SWAPDB"]),
    group(Is(Accumulating), TWO, &["BLMOVE", "BRPOPLPUSH"]).waits(Wait::SecondsLast),
    group(Is(Accumulating), ALL_BUT_LAST, &[
        "BLPOP", "BRPOP", "BZPOPMAX", "BZPOPMIN",
    ]).waits(Wait::SecondsLast),
    group(Is(Accumulating), COUNT_2, &["BLMPOP", "BZMPOP"]).waits(Wait::SecondsFirst),
    group(Is(Accumulating), KeySpec::Streams, &["XREADGROUP"]).waits(Wait::BlockOption),
    // A group's place, or a stream's last id, moves on meanwhile: moved back, it delivers again, or
    // gives an id twice; moved on to `$`, it skips.
    group(Is(Accumulating), FIRST, &["XSETID"]),
    group(Is(Accumulating), SECOND, &["XGROUP SETID"]),
    // Not one key but all that others have written meanwhile would be gone, so a caller has to ask
    // for the repeat.
    group(Is(Accumulating), NONE, &["FLUSHALL", "FLUSHDB", "FUNCTION FLUSH", "SCRIPT FLUSH"]),
    // Nobody can tell.
    group(Is(Opaque), COUNT_2, &["EVAL", "EVALSHA", "FCALL"]).fails(Errors::ProveNothing),
    group(Is(Opaque), SECOND, &["PFDEBUG"]),
    // Containers, when what follows is none of the subcommands known.
    group(Rule::Container, NONE, &[
        "ACL", "CLUSTER", "COMMANDLOG", "CONFIG", "FUNCTION", "LATENCY", "MEMORY", "MODULE",
        "OBJECT", "PUBSUB", "SCRIPT", "SLOWLOG", "XGROUP", "XINFO",
    ]),
    group(Rule::BareCommand, NONE, &["COMMAND"]),
    group(Rule::Container, NONE, &["CLIENT"]).refused(Alternative::Session),
    // The server as a whole.
    group(Is(Control), NONE, &[
        "SAVE", "BGSAVE", "BGREWRITEAOF", "SHUTDOWN", "FAILOVER", "REPLICAOF", "SLAVEOF", "DEBUG",
        "PFSELFTEST", "ACL DELUSER", "ACL LOAD", "ACL SAVE", "ACL SETUSER", "CLIENT KILL",
        "CLIENT PAUSE", "CLIENT UNBLOCK", "CLIENT UNPAUSE", "CLUSTER ADDSLOTS",
        "CLUSTER ADDSLOTSRANGE", "CLUSTER BUMPEPOCH", "CLUSTER DELSLOTS", "CLUSTER DELSLOTSRANGE",
        "CLUSTER FAILOVER", "CLUSTER FLUSHSLOTS", "CLUSTER FORGET", "CLUSTER MEET",
        "CLUSTER MIGRATION", "CLUSTER REPLICATE", "CLUSTER RESET", "CLUSTER SAVECONFIG",
        "CLUSTER SET-CONFIG-EPOCH", "CLUSTER SETSLOT", "COMMANDLOG RESET", "CONFIG RESETSTAT",
        "CONFIG REWRITE", "CONFIG SET", "FUNCTION KILL", "LATENCY RESET", "MEMORY PURGE",
        "MODULE LOAD", "MODULE LOADEX", "MODULE UNLOAD", "SCRIPT KILL", "SLOWLOG RESET",
    ]),
    // The state of one connection. WAIT speaks of the writes of its own connection, so on any other
    // it would answer at once and mean nothing.
    group(Is(Control), NONE, &[
        "MULTI", "EXEC", "DISCARD", "UNWATCH", "SELECT", "READONLY", "READWRITE", "ASKING",
        "CLIENT CAPA", "CLIENT IMPORT-SOURCE", "CLIENT NO-EVICT", "CLIENT NO-TOUCH",
        "CLIENT SETINFO", "CLIENT SETNAME",
    ]).refused(Alternative::Session),
    group(Is(Control), ALL, &["WATCH"]).refused(Alternative::Session),
    group(Is(Control), NONE, &["WAIT"]).waits(Wait::Millis { at: 2 }).refused(Alternative::Session),
    group(Is(Control), NONE, &["WAITAOF"]).waits(Wait::Millis { at: 3 }).refused(Alternative::Session),
    group(Is(Control), NONE, &[
        "SUBSCRIBE", "PSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE",
    ]).refused(Alternative::PubSub),
    group(Is(Control), ALL, &["SSUBSCRIBE", "SUNSUBSCRIBE"]).refused(Alternative::PubSub),
    // These would take the connection out of the hands of the client that looks after it.
    group(Is(Control), NONE, &[
        "AUTH", "HELLO", "RESET", "QUIT", "MONITOR", "SYNC", "PSYNC", "REPLCONF", "CLIENT CACHING",
        "CLIENT REPLY", "CLIENT TRACKING", "SCRIPT DEBUG",
    ]).refused(Alternative::Unsupported),
];

/// Finds the group of a command, with its canonical name. `sub` is given for the commands of a
/// container.
#[inline]
pub(super) fn find(name: &[u8], sub: Option<&[u8]>) -> Option<(&'static Group, &'static str)> {
    if name.len() + sub.map_or(0, |sub| sub.len() + 1) > LONGEST {
        return None;
    }
    let mut hash = fold(SEED, name);
    if let Some(sub) = sub {
        hash = fold(fold(hash, b" "), sub);
    }
    let mut at = slot(hash);
    while let TableSlot {
        group,
        name: Some(index),
    } = INDEX[at]
    {
        let group = &GROUPS[usize::from(group)];
        let known = group.names[usize::from(index)];
        if matches(known.as_bytes(), name, sub) {
            return Some((group, known));
        }
        at = (at + 1) % SLOTS;
    }
    None
}

#[inline]
fn matches(known: &[u8], name: &[u8], sub: Option<&[u8]>) -> bool {
    match sub {
        // A space belongs between a container and its command, never into a name.
        None => known.eq_ignore_ascii_case(name) && !name.contains(&b' '),
        Some(sub) => known
            .split_at_checked(name.len())
            .is_some_and(|(head, tail)| {
                head.eq_ignore_ascii_case(name)
                    && tail.split_first().is_some_and(|(space, tail)| {
                        *space == b' ' && tail.eq_ignore_ascii_case(sub)
                    })
            }),
    }
}

#[derive(Clone, Copy)]
struct TableSlot {
    group: u8,
    name: Option<u8>,
}

/// More than twice as many slots as names, so that most look-ups hit at the first.
const SLOTS: usize = 1024;

/// The length of the longest name; anything longer need not be looked up.
const LONGEST: usize = 29;

static INDEX: [TableSlot; SLOTS] = index();

const fn index() -> [TableSlot; SLOTS] {
    let mut index = [TableSlot {
        group: 0,
        name: None,
    }; SLOTS];
    let mut group = 0;
    while group < GROUPS.len() {
        let names = GROUPS[group].names;
        let mut name = 0;
        while name < names.len() {
            assert!(names[name].len() <= LONGEST);
            let mut at = slot(fold(SEED, names[name].as_bytes()));
            while index[at].name.is_some() {
                at = (at + 1) % SLOTS;
            }
            index[at] = TableSlot {
                group: group as u8,
                name: Some(name as u8),
            };
            name += 1;
        }
        group += 1;
    }
    index
}

/// FNV-1a over the upper-case letters.
const fn fold(mut hash: u32, bytes: &[u8]) -> u32 {
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i].to_ascii_uppercase() as u32).wrapping_mul(0x0100_0193);
        i += 1;
    }
    hash
}

const SEED: u32 = 0x811c_9dc5;

const fn slot(hash: u32) -> usize {
    (hash ^ (hash >> 15)) as usize % SLOTS
}

/// All names that the table knows.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    GROUPS.iter().flat_map(|group| group.names.iter().copied())
}
