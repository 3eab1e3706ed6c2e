//! The contract, applied to what the processes wrote down. Pure but for reading the files.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use steadfast_cache::Source;

/// An answer that does not say that it is stale is never older than this, whatever has happened to
/// Redis or to a process: the time that a proof of the channel lasts, or that a row may wait in the
/// outbox, and an allowance for a machine that is busy with other things.
pub(crate) const BOUND: Duration = Duration::from_millis(3000);

/// The name of those who do things to the processes and their servers.
pub(crate) const STAGE: &str = "stage";

/// Microseconds before the first wrong read from which on notes explain it.
const NOTED_BEFORE: u64 = 2_000_000;

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
        source: Source,
        age_ms: u64,
    },
    Refused,
    /// Keys that the process has asked Redis for together with others.
    Shared(u64),
    /// What was done, believed or held from then on. Nothing is judged by it; it explains.
    Note {
        at: u64,
        text: String,
    },
}

/// The lines of each process, in its own order.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) processes: Vec<Vec<Line>>,
    /// What the processes are called.
    pub(crate) names: Vec<String>,
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
    /// What was noted from a while before the first violation to the last.
    pub(crate) notes: String,
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
                source,
                age_ms,
            } => {
                let source = Source::ALL.iter().position(|other| other == source);
                format!(
                    "R {item} {version} {from} {to} {} {} {} {} {age_ms}\n",
                    u8::from(*stale),
                    u8::from(*strict),
                    u8::from(*late),
                    source.unwrap(),
                )
            }
            Self::Refused => "X\n".to_owned(),
            Self::Shared(keys) => format!("S {keys}\n"),
            Self::Note { at, text } => format!("N {at} {text}\n"),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let (kind, rest) = line.split_at_checked(1)?;
        if kind == "N" {
            let (at, text) = rest.trim_start().split_once(' ')?;
            return Some(Self::Note {
                at: at.parse().ok()?,
                text: text.to_owned(),
            });
        }
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
            ("R", [item, version, from, to, stale, strict, late, source, age_ms]) => {
                Some(Self::Read {
                    item: *item,
                    version: *version,
                    from: *from as u64,
                    to: *to as u64,
                    stale: *stale == 1,
                    strict: *strict == 1,
                    late: *late == 1,
                    source: *Source::ALL.get(*source as usize)?,
                    age_ms: *age_ms as u64,
                })
            }
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
                    let name = path.file_stem().unwrap_or_default().to_string_lossy();
                    history.names.push(name.into_owned());
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

impl Line {
    fn at(&self) -> Option<u64> {
        match self {
            Self::Begun { at, .. } | Self::Committed { at, .. } | Self::Note { at, .. } => {
                Some(*at)
            }
            Self::Read { from, .. } => Some(*from),
            Self::Refused | Self::Shared(_) => None,
        }
    }
}

impl History {
    fn began(&self) -> u64 {
        let lines = self.processes.iter().flatten();
        lines.filter_map(Line::at).min().unwrap_or(0)
    }

    /// What was done at any time, and what was believed and held when the reads were wrong and for
    /// a while before.
    fn notes(&self, first: u64, last: u64) -> String {
        let (began, earliest) = (self.began(), first.saturating_sub(NOTED_BEFORE));
        let mut notes = Vec::new();
        for (name, lines) in self.names.iter().zip(&self.processes) {
            for line in lines {
                if let Line::Note { at, text } = line
                    && (name == STAGE || (earliest..=last).contains(at))
                {
                    notes.push((*at, name, text));
                }
            }
        }
        notes.sort_unstable();
        notes
            .iter()
            .fold(String::new(), |mut all, (at, name, text)| {
                writeln!(all, "{} {name}: {text}", since(began, *at)).unwrap();
                all
            })
    }
}

impl Verdict {
    pub(crate) fn assert_kept(&self) {
        let few: Vec<_> = self.violations.iter().take(5).collect();
        assert!(
            self.violations.is_empty(),
            "{} of {} reads: {few:#?}\nfaults: {}\n{}",
            self.violations.len(),
            self.reads,
            self.faults,
            self.notes
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
        notes: String::new(),
    };
    let began = history.began();
    let mut broken_at: Vec<u64> = Vec::new();
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
                Line::Begun { .. } | Line::Note { .. } => {}
                Line::Read {
                    item,
                    version,
                    from,
                    to,
                    stale,
                    strict,
                    late,
                    ..
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
                        let at = first_at(&committed, *item, floor);
                        Some(format!(
                            "fresh, although {floor} was committed at {}, over {BOUND:?} before",
                            since(began, at)
                        ))
                    } else {
                        None
                    };
                    if let Some(why) = broken {
                        let name = history.names.get(process).map_or("", |name| name);
                        let at = *from;
                        let (from, to) = (since(began, *from), since(began, *to));
                        let violation = format!("process {name}, {from} to {to}: {line:?}: {why}");
                        verdict.violations.push(violation);
                        broken_at.push(at);
                    }
                }
            }
        }
    }
    if let (Some(first), Some(last)) = (broken_at.iter().min(), broken_at.iter().max()) {
        verdict.notes = history.notes(*first, *last);
    }
    verdict
}

/// The time since the history began.
fn since(began: u64, at: u64) -> String {
    format!("{:.3} s", at.saturating_sub(began) as f64 / 1e6)
}

/// When a version, or a higher one, was there first.
fn first_at(times: &HashMap<i64, Vec<(u64, i64)>>, item: i64, version: i64) -> u64 {
    let times = times.get(&item).into_iter().flatten();
    let mut there = times.filter(|(_, highest)| *highest >= version);
    there.next().map_or(0, |(at, _)| *at)
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
        source: Source::Memory,
        age_ms: 3,
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
            ..History::default()
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
    let note = Line::Note {
        at: 7,
        text: "sql is rolled back".to_owned(),
    };
    assert_eq!(Line::parse(note.write().trim()), Some(note));
}
