//! The contract, applied to what the processes wrote down. Pure but for reading the files.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

/// An answer that does not say that it is stale is never older than this, whatever has happened to
/// Redis or to a process: the time that a proof of the channel lasts, or that a row may wait in the
/// outbox, and an allowance for a machine that is busy with other things.
pub(crate) const BOUND: Duration = Duration::from_millis(3000);

/// What a process wrote down. Times are microseconds of the one clock that all processes of a
/// machine share.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Line {
    /// A version is about to be committed.
    Begun {
        item: i64,
        version: i64,
        at: u64,
    },
    /// It was committed by then, and its invalidation applied as far as the process waits for that.
    Committed {
        item: i64,
        version: i64,
        at: u64,
    },
    Read {
        item: i64,
        version: i64,
        from: u64,
        to: u64,
        stale: bool,
        strict: bool,
        /// Older than its class lets a fresh value be, and not marked.
        late: bool,
    },
    Refused,
    /// Keys that the process has asked Redis for together with others.
    Shared(u64),
}

/// The lines of each process, in its own order.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) processes: Vec<Vec<Line>>,
    pub(crate) faults: String,
}

#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) reads: usize,
    pub(crate) commits: usize,
    pub(crate) refused: usize,
    /// Keys that Redis was asked for by several readers together.
    pub(crate) shared: u64,
    pub(crate) violations: Vec<String>,
    pub(crate) faults: String,
}

impl Line {
    pub(crate) fn write(&self) -> String {
        match self {
            Self::Begun { item, version, at } => format!("B {item} {version} {at}\n"),
            Self::Committed { item, version, at } => format!("C {item} {version} {at}\n"),
            Self::Read {
                item,
                version,
                from,
                to,
                stale,
                strict,
                late,
            } => {
                format!(
                    "R {item} {version} {from} {to} {} {} {}\n",
                    u8::from(*stale),
                    u8::from(*strict),
                    u8::from(*late)
                )
            }
            Self::Refused => "X\n".to_owned(),
            Self::Shared(keys) => format!("S {keys}\n"),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let (kind, rest) = line.split_at_checked(1)?;
        let numbers: Option<Vec<i64>> = rest
            .split_whitespace()
            .map(|number| number.parse().ok())
            .collect();
        match (kind, numbers?.as_slice()) {
            ("B", [item, version, at]) => Some(Self::Begun {
                item: *item,
                version: *version,
                at: *at as u64,
            }),
            ("C", [item, version, at]) => Some(Self::Committed {
                item: *item,
                version: *version,
                at: *at as u64,
            }),
            ("R", [item, version, from, to, stale, strict, late]) => Some(Self::Read {
                item: *item,
                version: *version,
                from: *from as u64,
                to: *to as u64,
                stale: *stale == 1,
                strict: *strict == 1,
                late: *late == 1,
            }),
            ("X", []) => Some(Self::Refused),
            ("S", [keys]) => Some(Self::Shared(*keys as u64)),
            _ => None,
        }
    }
}

impl History {
    /// Reads what is there; the last line of a process that was killed may be cut off.
    pub(crate) fn read(folder: &Path) -> Self {
        let mut history = Self::default();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let Ok(text) = std::fs::read_to_string(&path) else {
                continue;
            };
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("history") => {
                    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
                    history.processes.push(
                        whole
                            .lines()
                            .map(|line| Line::parse(line).expect(line))
                            .collect(),
                    );
                }
                Some("faults") => history.faults = text,
                _ => {}
            }
        }
        history
    }
}

impl Verdict {
    pub(crate) fn assert_kept(&self) {
        let few: Vec<_> = self.violations.iter().take(5).collect();
        assert!(
            self.violations.is_empty(),
            "{} of {} reads: {few:#?}\nfaults: {}",
            self.violations.len(),
            self.reads,
            self.faults
        );
        assert!(
            self.reads > 500 && self.commits > 30,
            "too little happened to prove anything: {self:?}"
        );
        assert!(
            self.refused * 20 < self.reads,
            "too many reads were refused: {self:?}"
        );
    }
}

pub(crate) fn judge(history: &History) -> Verdict {
    let bound = BOUND.as_micros() as u64;
    let (mut begun, mut committed) = (
        HashMap::<i64, Vec<(u64, i64)>>::new(),
        HashMap::<i64, Vec<(u64, i64)>>::new(),
    );
    for line in history.processes.iter().flatten() {
        match line {
            Line::Begun { item, version, at } => {
                begun.entry(*item).or_default().push((*at, *version))
            }
            Line::Committed { item, version, at } => {
                committed.entry(*item).or_default().push((*at, *version))
            }
            _ => {}
        }
    }
    for times in begun.values_mut().chain(committed.values_mut()) {
        times.sort_unstable();
        let mut highest = 0;
        for (_, version) in times {
            highest = highest.max(*version);
            *version = highest;
        }
    }
    let mut verdict = Verdict {
        reads: 0,
        commits: 0,
        refused: 0,
        shared: 0,
        violations: Vec::new(),
        faults: history.faults.clone(),
    };
    for (process, lines) in history.processes.iter().enumerate() {
        let mut own = HashMap::<i64, Vec<(u64, i64)>>::new();
        for line in lines {
            match line {
                Line::Committed { item, version, at } => {
                    verdict.commits += 1;
                    own.entry(*item).or_default().push((*at, *version));
                }
                Line::Refused => verdict.refused += 1,
                Line::Shared(keys) => verdict.shared = verdict.shared.max(*keys),
                Line::Begun { .. } => {}
                Line::Read {
                    item,
                    version,
                    from,
                    to,
                    stale,
                    strict,
                    late,
                } => {
                    verdict.reads += 1;
                    let mine = own
                        .get(item)
                        .into_iter()
                        .flatten()
                        .filter(|(at, _)| at < from)
                        .map(|(_, version)| *version)
                        .max();
                    let broken = if *version > highest_by(&begun, *item, *to) {
                        Some("a version that nobody had written".to_owned())
                    } else if *stale && *strict {
                        Some("stale, of a class that may not be".to_owned())
                    } else if *late {
                        Some("fresh, although older than its class allows".to_owned())
                    } else if mine.is_some_and(|mine| *version < mine) {
                        Some(format!(
                            "older than the process's own version {}",
                            mine.unwrap_or(0)
                        ))
                    } else if !stale
                        && *version < highest_by(&committed, *item, from.saturating_sub(bound))
                    {
                        let floor = highest_by(&committed, *item, from.saturating_sub(bound));
                        Some(format!(
                            "fresh, although {floor} was committed more than {BOUND:?} before"
                        ))
                    } else {
                        None
                    };
                    verdict
                        .violations
                        .extend(broken.map(|why| format!("process {process}: {line:?}: {why}")));
                }
            }
        }
    }
    verdict
}

/// The highest version by that time.
fn highest_by(times: &HashMap<i64, Vec<(u64, i64)>>, item: i64, at: u64) -> i64 {
    let times = times.get(&item).map_or(&[][..], Vec::as_slice);
    let end = times.partition_point(|(time, _)| *time <= at);
    end.checked_sub(1).map_or(0, |last| times[last].1)
}

#[test]
fn the_judge_knows_each_way_to_break_the_contract() {
    let read = |version, from: u64, stale, strict| Line::Read {
        item: 1,
        version,
        from,
        to: from + 10,
        stale,
        strict,
        late: false,
    };
    let writer = vec![
        Line::Begun {
            item: 1,
            version: 1,
            at: 100,
        },
        Line::Committed {
            item: 1,
            version: 1,
            at: 110,
        },
        Line::Begun {
            item: 1,
            version: 2,
            at: 200,
        },
        Line::Committed {
            item: 1,
            version: 2,
            at: 210,
        },
    ];
    let late = 210 + BOUND.as_micros() as u64 + 1;
    let judged = |reader: Line, same: bool| {
        let mut processes = vec![writer.clone(), vec![]];
        processes[usize::from(!same)].push(reader);
        judge(&History {
            processes,
            faults: String::new(),
        })
        .violations
        .len()
    };
    assert_eq!(judged(read(2, late, false, false), false), 0);
    assert_eq!(judged(read(1, late, false, false), false), 1, "too old");
    assert_eq!(
        judged(read(1, late, true, false), false),
        0,
        "says that it is stale"
    );
    assert_eq!(
        judged(read(2, late, true, true), false),
        1,
        "a strict class may not"
    );
    assert_eq!(
        judged(read(1, 220, false, false), false),
        0,
        "within the bound"
    );
    assert_eq!(judged(read(1, 220, false, false), true), 1, "its own write");
    assert_eq!(
        judged(read(3, late, false, false), false),
        1,
        "from nowhere"
    );
    let mut too_old = read(2, late, false, false);
    if let Line::Read { late, .. } = &mut too_old {
        *late = true;
    }
    assert_eq!(judged(too_old, false), 1, "its class allows less");
    assert_eq!(
        Line::parse(read(2, late, true, false).write().trim()),
        Some(read(2, late, true, false))
    );
}
