//! The top level of a WebAssembly binary: enough of it to tell module from component and to find or append one custom
//! section. Layout: 4 bytes magic, 2 bytes version, 2 bytes layer, then sections of id, LEB128 length, body.

const MAGIC: [u8; 4] = *b"\0asm";
const PREFACE_BYTES: usize = 8;
const LAYER_MODULE: [u8; 2] = [0, 0];
const LAYER_COMPONENT: [u8; 2] = [1, 0];
const CUSTOM: u8 = 0;

/// What a file is, by its first eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Module,
    Component,
    NotWasm,
}

pub(crate) fn kind(bytes: &[u8]) -> Kind {
    match bytes.first_chunk::<PREFACE_BYTES>() {
        Some([a, b, c, d, _, _, layer @ ..]) if [*a, *b, *c, *d] == MAGIC => match *layer {
            LAYER_MODULE => Kind::Module,
            LAYER_COMPONENT => Kind::Component,
            _ => Kind::NotWasm,
        },
        _ => Kind::NotWasm,
    }
}

/// The bodies of all custom sections called `name`. Ends quietly at the first malformed section: the validator names it.
pub(crate) fn custom_sections<'a>(binary: &'a [u8], name: &str) -> Vec<&'a [u8]> {
    let mut found = Vec::new();
    let mut rest = binary.get(PREFACE_BYTES..).unwrap_or_default();
    while let Some((&id, after)) = rest.split_first() {
        let Some((body, next)) = sized(after) else { break };
        if id == CUSTOM
            && let Some((section, content)) = sized(body)
            && section == name.as_bytes()
        {
            found.push(content);
        }
        rest = next;
    }
    found
}

/// Appends a custom section.
pub(crate) fn append_custom(binary: &mut Vec<u8>, name: &str, content: &[u8]) {
    let mut body = Vec::with_capacity(name.len() + content.len() + 5);
    leb128(&mut body, name.len());
    body.extend_from_slice(name.as_bytes());
    body.extend_from_slice(content);
    binary.push(CUSTOM);
    leb128(binary, body.len());
    binary.extend_from_slice(&body);
}

/// A LEB128 length and that many bytes; then the rest.
fn sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length = 0u64;
    for (at, &byte) in bytes.iter().enumerate().take(5) {
        length |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return bytes.get(at + 1..)?.split_at_checked(usize::try_from(length).ok()?);
        }
    }
    None
}

fn leb128(out: &mut Vec<u8>, value: usize) {
    let mut left = value;
    while left >= 0x80 {
        out.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const COMPONENT: [u8; 8] = [0, b'a', b's', b'm', 0x0d, 0, 1, 0];

    #[test]
    fn files_are_told_apart() {
        assert_eq!(kind(&COMPONENT), Kind::Component);
        assert_eq!(kind(&[0, b'a', b's', b'm', 1, 0, 0, 0]), Kind::Module);
        assert_eq!(kind(b"(module)"), Kind::NotWasm);
        assert_eq!(kind(b"\0as"), Kind::NotWasm);
    }

    proptest! {
        #[test]
        fn what_is_appended_is_found(content in proptest::collection::vec(any::<u8>(), 0..400), times in 0usize..3) {
            let mut binary = COMPONENT.to_vec();
            append_custom(&mut binary, "other", &[1, 2, 3]);
            for _ in 0..times {
                append_custom(&mut binary, "weir-plugin", &content);
            }
            append_custom(&mut binary, "last", &[]);
            let found = custom_sections(&binary, "weir-plugin");
            prop_assert_eq!(found, vec![content.as_slice(); times]);
        }

        #[test]
        fn any_bytes_are_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (kind(&bytes), custom_sections(&bytes, "x").len());
        }
    }
}
