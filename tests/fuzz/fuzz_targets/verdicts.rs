//! What a plugin returns: verdicts and arena, and the batch as a guest reads it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_plugin_abi::{BatchView, VerdictRules, VerdictView};

fuzz_target!(|data: &[u8]| {
    if let Ok(batch) = BatchView::parse(data) {
        for entry in batch.entries() {
            let _ = entry;
        }
    }
    let Some((&split, rest)) = data.split_first() else { return };
    let at = rest.len().min(usize::from(split) * 32);
    let (verdicts, arena) = rest.split_at(at);
    let Ok(view) = VerdictView::parse(verdicts, arena) else { return };
    let mut rules = VerdictRules::new(64, 4);
    for verdict in view.verdicts() {
        let Ok(verdict) = verdict else { return };
        if rules.check(&verdict, arena.len()).is_err() {
            return;
        }
        let _ = (view.key(&verdict), view.value(&verdict));
    }
});
