//! automerge-repo's messages, as its stock client writes them: one CBOR map each.

use minicbor::Decoder;
use minicbor::data::Type;

/// What the driver looks at in a message of a server.
#[derive(Debug, Default)]
pub struct Incoming<'a> {
    pub kind: &'a str,
    pub sender: &'a str,
    pub document: &'a str,
    pub data: &'a [u8],
    pub message: &'a str,
}

/// Reads a message; `None` when it is none.
pub fn read(bytes: &[u8]) -> Option<Incoming<'_>> {
    let mut decoder = Decoder::new(bytes);
    let fields = decoder.map().ok()?;
    let mut incoming = Incoming::default();
    let mut read = 0;
    while fields.is_none_or(|fields| read < fields) {
        if fields.is_none() && decoder.datatype().ok()? == Type::Break {
            break;
        }
        read += 1;
        match decoder.str().ok()? {
            "type" => incoming.kind = decoder.str().ok()?,
            "senderId" => incoming.sender = decoder.str().ok()?,
            "documentId" => incoming.document = decoder.str().ok()?,
            "data" => incoming.data = decoder.bytes().ok()?,
            "message" => incoming.message = decoder.str().ok()?,
            _ => decoder.skip().ok()?,
        }
    }
    Some(incoming)
}

/// What a client says first.
pub fn join(sender: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    map(&mut out, 4);
    text(&mut out, "type");
    text(&mut out, "join");
    text(&mut out, "senderId");
    text(&mut out, sender);
    text(&mut out, "peerMetadata");
    map(&mut out, 2);
    text(&mut out, "storageId");
    out.push(0xf7);
    text(&mut out, "isEphemeral");
    out.push(0xf5);
    text(&mut out, "supportedProtocolVersions");
    out.push(0x81);
    text(&mut out, "1");
    out
}

/// A sync message of a document: `kind` is `sync` or `request`.
pub fn sync(kind: &str, sender: &str, target: &str, document: &str, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(96 + sender.len() + target.len() + document.len() + data.len());
    map(&mut out, 5);
    for (key, value) in [("type", kind), ("senderId", sender), ("targetId", target), ("documentId", document)] {
        text(&mut out, key);
        text(&mut out, value);
    }
    text(&mut out, "data");
    length(&mut out, 0x40, data.len());
    out.extend_from_slice(data);
    out
}

fn map(out: &mut Vec<u8>, entries: u16) {
    out.push(0xb9);
    out.extend_from_slice(&entries.to_be_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    length(out, 0x60, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn length(out: &mut Vec<u8>, major: u8, length: usize) {
    match length {
        0..24 => out.push(major | length as u8),
        24..0x100 => out.extend_from_slice(&[major | 24, length as u8]),
        0x100..0x1_0000 => {
            out.push(major | 25);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            out.push(major | 26);
            out.extend_from_slice(&(length as u32).to_be_bytes());
        }
    }
}
