//! The bytes of a payload.

use redis::Pipeline;
use steadfast_core::redis_rs;
use steadfast_core::resp::encode;
use steadfast_core::split::Portion;

use super::Payload;
use crate::wire::queue::Encode;

impl Encode for Payload<'_> {
    fn size(&self) -> usize {
        match self {
            Self::Command(cmd) => encode::most_bytes(*cmd),
            Self::Pipeline(pipeline) => {
                let commands: usize = pipeline.cmd_iter().map(encode::most_bytes).sum();
                commands + MULTI.len() + EXEC.len()
            }
            Self::Portions(portions) => portions.iter().map(|portion| portion.most_bytes()).sum(),
        }
    }

    /// Appends its bytes; returns the length past which it may have had an effect.
    fn encode(self, out: &mut Vec<u8>) -> usize {
        match self {
            Self::Command(cmd) => {
                encode::redis_cmd(cmd, out);
                out.len()
            }
            Self::Pipeline(pipeline) => encode_pipeline(pipeline, out),
            Self::Portions(portions) => encode_portions(portions, out),
        }
    }
}

/// A payload behind an ASKING, in one piece: nothing comes between the two.
pub(crate) struct Asking<'a>(pub(crate) Payload<'a>);

impl Encode for Asking<'_> {
    fn size(&self) -> usize {
        ASKING.len() + self.0.size()
    }

    fn encode(self, out: &mut Vec<u8>) -> usize {
        out.extend_from_slice(ASKING);
        self.0.encode(out)
    }
}

/// The portions one after the other; returns the length past which one may have had an effect.
fn encode_portions(portions: &[Portion<'_>], out: &mut Vec<u8>) -> usize {
    let mut first_end = None;
    for portion in portions {
        portion.encode(out);
        first_end.get_or_insert(out.len());
    }
    first_end.unwrap_or(out.len())
}

fn encode_pipeline(pipeline: &Pipeline, out: &mut Vec<u8>) -> usize {
    let transaction = pipeline.is_transaction();
    if transaction {
        out.extend_from_slice(MULTI);
    }
    let mut first_end = None;
    for cmd in redis_rs::commands(pipeline) {
        encode::redis_cmd(cmd, out);
        first_end.get_or_insert(out.len());
    }
    if transaction {
        // Nothing of a transaction runs before its EXEC has arrived whole.
        out.extend_from_slice(EXEC);
        return out.len();
    }
    first_end.unwrap_or(out.len())
}

const ASKING: &[u8] = b"*1\r\n$6\r\nASKING\r\n";

const MULTI: &[u8] = b"*1\r\n$5\r\nMULTI\r\n";

const EXEC: &[u8] = b"*1\r\n$4\r\nEXEC\r\n";
