//! Verdicts become the next stage's list: keeps move an index entry, never a payload.
use weir_plugin_abi::{Action, OUTPUT_STREAM, Verdict, VerdictError, VerdictRules, VerdictView};

use crate::error::{Failure, FailureKind};
use crate::instance::Emitted;
use crate::items::{Item, Span};
use crate::stats::StageDelta;

/// What the stages of one batch have produced so far.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    /// The next stage's list.
    pub(crate) next: Vec<Item>,
    /// Records for other topics: index into the pipeline's topics.
    pub(crate) routed: Vec<(usize, Item)>,
    pub(crate) dead: Vec<DeadLetter>,
    pub(crate) failures: Vec<Failure>,
    /// Whether the stream differs from the producer's batch.
    pub(crate) changed: bool,
}

#[derive(Debug)]
pub(crate) struct DeadLetter {
    pub(crate) topic: usize,
    pub(crate) item: Item,
    pub(crate) stage: usize,
    pub(crate) kind: FailureKind,
    pub(crate) message: std::sync::Arc<str>,
}

impl Collected {
    pub(crate) fn clear(&mut self) {
        self.next.clear();
        self.routed.clear();
        self.dead.clear();
        self.failures.clear();
        self.changed = false;
    }
}

/// Each `emit` with the arena it was given: a view, and where its arena starts.
pub(crate) fn calls(emitted: &Emitted) -> impl Iterator<Item = Result<(VerdictView<'_>, usize), VerdictError>> {
    let ends = emitted.calls.iter().skip(1).map(|next| (next.verdicts_start, next.arena_start));
    let ends = ends.chain([(emitted.verdicts.len(), emitted.arena.len())]);
    emitted.calls.iter().zip(ends).map(|(call, (verdicts_end, arena_end))| {
        let verdicts = &emitted.verdicts[call.verdicts_start..verdicts_end];
        let arena = &emitted.arena[call.arena_start..arena_end];
        Ok((VerdictView::parse(verdicts, arena)?, call.arena_start))
    })
}

/// What was said about a batch, in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// Nothing: every record is kept.
    Nothing,
    /// Some records are dropped, the others kept.
    Drops,
    /// Something else.
    More,
}

/// Holds everything emitted to the rules before any of it counts.
pub(crate) fn check(emitted: &Emitted, count: usize, outputs: usize) -> Result<Said, VerdictError> {
    let mut rules = VerdictRules::new(count as u32, outputs as u16);
    let arena_end = emitted.arena.len();
    let mut said = Said::Nothing;
    for (at, call) in calls(emitted).enumerate() {
        let (view, arena_start) = call?;
        let next_start = emitted.calls.get(at + 1).map_or(arena_end, |next| next.arena_start);
        for verdict in view.verdicts() {
            let verdict = verdict?;
            rules.check(&verdict, next_start - arena_start)?;
            said = match (said, verdict.action) {
                (Said::Nothing | Said::Drops, Action::Drop) => Said::Drops,
                _ => Said::More,
            };
        }
    }
    Ok(said)
}

/// The records that checked verdicts are about, in order.
pub(crate) fn sources(emitted: &Emitted) -> impl Iterator<Item = u32> {
    calls(emitted).flatten().flat_map(|(view, _)| view.verdicts().flatten().map(|verdict| verdict.source))
}

/// Where verdicts lead.
pub(crate) struct Apply<'a, R> {
    /// The records judged.
    pub(crate) items: &'a [Item],
    /// Buffer number of the arena.
    pub(crate) buffer: usize,
    /// Topics of the plugin's outputs.
    pub(crate) output_topics: &'a [usize],
    pub(crate) collected: &'a mut Collected,
    pub(crate) delta: &'a mut StageDelta,
    /// The failure policy: the record and where the message lies.
    pub(crate) reject: R,
}

impl<R, E> Apply<'_, R>
where
    R: FnMut(&mut Collected, &mut StageDelta, &Item, Span) -> Result<(), E>,
{
    /// Applies checked verdicts.
    ///
    /// # Errors
    /// What the failure policy says about a reject.
    pub(crate) fn run(mut self, emitted: &Emitted) -> Result<(), E> {
        let mut open: Option<Open> = None;
        for (view, arena_start) in calls(emitted).flatten() {
            for verdict in view.verdicts().flatten() {
                let source = verdict.source as usize;
                if open.as_ref().is_none_or(|open| open.source != source) {
                    let unsaid = self.close(open.take());
                    self.keep_unsaid(unsaid, source);
                    open = Some(Open { source, decided: false });
                }
                let decided = self.one(&verdict, arena_start)?;
                if let Some(open) = &mut open {
                    open.decided |= decided;
                }
            }
        }
        let unsaid = self.close(open);
        self.keep_unsaid(unsaid, self.items.len());
        Ok(())
    }

    /// Ends a source's verdicts; the next source that nothing was said about yet.
    fn close(&mut self, open: Option<Open>) -> usize {
        let Some(open) = open else { return 0 };
        if !open.decided {
            self.delta.moved += 1;
            self.collected.changed = true;
        }
        open.source + 1
    }

    /// A plugin that says nothing changes nothing.
    fn keep_unsaid(&mut self, from: usize, to: usize) {
        let kept = &self.items[from..to];
        self.delta.kept += kept.len() as u64;
        self.collected.next.extend_from_slice(kept);
    }

    /// One verdict; whether it decides about its source.
    fn one(&mut self, verdict: &Verdict, arena_start: usize) -> Result<bool, E> {
        let source = self.items[verdict.source as usize];
        match verdict.action {
            Action::Keep if verdict.output == OUTPUT_STREAM => {
                self.delta.kept += 1;
                self.collected.next.push(source);
            }
            Action::Keep => {
                self.route(verdict.output, source);
                return Ok(false);
            }
            Action::Drop => {
                self.delta.dropped += 1;
                self.collected.changed = true;
            }
            Action::Replace => {
                self.delta.replaced += 1;
                self.collected.changed = true;
                self.collected.next.push(self.made(verdict, arena_start, &source));
            }
            Action::Emit => {
                let made = self.made(verdict, arena_start, &source);
                self.delta.emitted += 1;
                if verdict.output == OUTPUT_STREAM {
                    self.collected.changed = true;
                    self.collected.next.push(made);
                } else {
                    self.route(verdict.output, made);
                }
                return Ok(false);
            }
            Action::Reject => {
                let message = self.span(verdict.value_range(), arena_start);
                (self.reject)(self.collected, self.delta, &source, message)?;
            }
        }
        Ok(true)
    }

    fn route(&mut self, output: u16, item: Item) {
        let topic = self.output_topics[usize::from(output) - 1];
        self.collected.routed.push((topic, item));
    }

    /// A replaced or emitted record carries the headers of its source.
    fn made(&self, verdict: &Verdict, arena_start: usize, source: &Item) -> Item {
        let key = if verdict.keeps_key() { source.key } else { self.span(verdict.key_range(), arena_start) };
        Item {
            source: source.source,
            timestamp: verdict.timestamp_or(source.timestamp),
            key,
            value: self.span(verdict.value_range(), arena_start),
            headers: source.headers,
            untouched: false,
        }
    }

    fn span(&self, range: Option<(u32, u32)>, arena_start: usize) -> Span {
        range.map_or(Span::NULL, |(start, bytes)| Span::new(self.buffer, arena_start + start as usize, bytes as usize))
    }
}

/// The source whose verdicts are being read.
struct Open {
    source: usize,
    decided: bool,
}
