//! Text as it lies in files and comes through pipes: gzip and zstd are decompressed, one byte order mark is dropped, and what is
//! not UTF-8 but UTF-16 is refused by name.
//!
//! Everything is streamed: memory does not grow with the input.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Error as IoError, ErrorKind, Read, Result as IoResult};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::error::{Error, Result};

/// How far from its beginning text is searched for the zero bytes of UTF-16; also the size of the buffer.
const CHECKED_BYTES: usize = 64 << 10;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What the beginning of a file says about the rest.
const MAGICS: [(&[u8], Kind); 7] = [
    (b"\x1f\x8b", Kind::Gzip),
    (b"\x28\xb5\x2f\xfd", Kind::Zstd),
    (b"\xfd7zXZ\0", Kind::Foreign("xz")),
    (b"BZh91AY&SY", Kind::Foreign("bzip2")),
    (b"PK\x03\x04", Kind::Foreign("zip")),
    (b"\xff\xfe", Kind::Utf16 { mark: "FF FE" }),
    (b"\xfe\xff", Kind::Utf16 { mark: "FE FF" }),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gzip,
    Zstd,
    /// A compression that is not read.
    Foreign(&'static str),
    Utf16 {
        mark: &'static str,
    },
    Plain,
}

/// Opens a text file. What its beginning shows to be no text is refused here, before anything has been read from it.
///
/// Also gives the file's size, where it is a regular file and not compressed.
///
/// # Errors
/// [`Error::Io`], also for other encodings and compressions.
pub(crate) fn open(path: &Path) -> Result<(TextReader, Option<u64>)> {
    let io = |operation| move |source| Error::Io { operation, path: path.to_path_buf(), source };
    let file = File::open(path).map_err(io("open"))?;
    let metadata = file.metadata().map_err(io("open"))?;
    if metadata.is_dir() {
        return Err(io("open")(ErrorKind::IsADirectory.into()));
    }
    let mut reader = TextReader::new(file);
    // A pipe is left alone until someone asks: its writer may be waiting for us.
    let plain = match metadata.is_file() {
        true => reader.check_beginning().map_err(io("read"))?,
        false => false,
    };
    Ok((reader, plain.then_some(metadata.len())))
}

/// What to do about text in another encoding.
pub(crate) const CONVERT: &str = "text in another encoding can be converted first: iconv -f ENCODING -t UTF-8";

/// UTF-8 text, as far as its first bytes tell: whether all of it is valid is for the caller to find out.
pub(crate) struct TextReader {
    state: State,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that have been consumed.
    used: usize,
    /// Bytes of text that have been searched for zeros.
    checked: usize,
    /// Whether a byte order mark was dropped.
    marked: bool,
}

enum State {
    /// Nothing has been read.
    Unread(Box<dyn Read + Send>),
    Open(Box<dyn Read + Send>),
    /// Found to be no text, and said so.
    Refused,
}

impl TextReader {
    /// Reads text from anywhere; nothing is read before someone asks.
    pub(crate) fn new(reader: impl Read + Send + 'static) -> Self {
        TextReader { state: State::Unread(Box::new(reader)), buffer: Vec::new(), used: 0, checked: 0, marked: false }
    }

    /// For what is put together again: whether the text had a byte order mark, which is not read. Known once something has been read.
    #[cfg(feature = "cli")]
    pub(crate) fn is_marked(&self) -> bool {
        self.marked
    }

    /// Reads as much as is searched for signs of other encodings, and whether the text is plain, not compressed.
    fn check_beginning(&mut self) -> IoResult<bool> {
        let plain = self.start()?;
        while self.buffer.len() < CHECKED_BYTES && self.read_more()? > 0 {}
        self.check()?;
        Ok(plain)
    }

    /// Finds out what kind of input this is, and reads its first bytes of text; whether it is not compressed.
    fn start(&mut self) -> IoResult<bool> {
        let State::Unread(mut reader) = std::mem::replace(&mut self.state, State::Refused) else { return Ok(false) };
        let magics = MAGICS.map(|(magic, _)| magic);
        let head = read_head(&mut reader, &magics)?;
        let kind = MAGICS.iter().find(|(magic, _)| head.starts_with(magic)).map_or(Kind::Plain, |(_, kind)| *kind);
        let whole = Cursor::new(head).chain(reader);
        let mut reader: Box<dyn Read + Send> = match kind {
            Kind::Plain => Box::new(whole),
            Kind::Gzip => Box::new(MultiGzDecoder::new(BufReader::new(whole))),
            Kind::Zstd => Box::new(Zstd::new(whole)),
            Kind::Foreign(name) => {
                return Err(invalid(format!(
                    "expected text, or text compressed by gzip or zstd, got {name}; decompress it first"
                )));
            }
            Kind::Utf16 { mark } => return Err(utf16(&format!("its byte order mark, {mark}"), "UTF-16")),
        };
        let mut text = read_head(&mut reader, &[BYTE_ORDER_MARK, b"\xff\xfe", b"\xfe\xff"])?;
        if text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff") {
            return Err(utf16("its byte order mark", "UTF-16"));
        }
        if text.starts_with(BYTE_ORDER_MARK) {
            text.drain(..BYTE_ORDER_MARK.len());
            self.marked = true;
        }
        self.buffer = text;
        self.state = State::Open(reader);
        Ok(kind == Kind::Plain)
    }

    /// Appends what one read gives.
    fn read_more(&mut self) -> IoResult<usize> {
        let State::Open(reader) = &mut self.state else { return Ok(0) };
        let before = self.buffer.len();
        self.buffer.resize(before.max(CHECKED_BYTES / 2) + CHECKED_BYTES / 2, 0);
        let read = read_some(reader, &mut self.buffer[before..]);
        self.buffer.truncate(before + *read.as_ref().unwrap_or(&0));
        read
    }

    /// Searches what has been read, and not been searched, for zeros, as far as they mean another encoding.
    fn check(&mut self) -> IoResult<()> {
        let left = CHECKED_BYTES - self.checked;
        let new = &self.buffer[..self.buffer.len().min(left)];
        if let Some(at) = new.iter().position(|byte| *byte == 0) {
            // The zero is the upper half of a Latin letter or a line break.
            let encoding = if (self.checked + at).is_multiple_of(2) { "UTF-16BE" } else { "UTF-16LE" };
            self.state = State::Refused;
            self.buffer.clear();
            self.used = 0;
            return Err(utf16("zero bytes", encoding));
        }
        self.checked += new.len();
        Ok(())
    }
}

impl BufRead for TextReader {
    fn fill_buf(&mut self) -> IoResult<&[u8]> {
        if self.used == self.buffer.len() {
            self.used = 0;
            self.buffer.clear();
            if matches!(self.state, State::Unread(_)) {
                self.start()?;
            }
            if self.buffer.is_empty() {
                self.read_more()?;
            }
            self.check()?;
        }
        Ok(&self.buffer[self.used..])
    }

    fn consume(&mut self, amount: usize) {
        self.used = self.buffer.len().min(self.used + amount);
    }
}

impl Read for TextReader {
    fn read(&mut self, out: &mut [u8]) -> IoResult<usize> {
        let ready = self.fill_buf()?;
        let count = ready.len().min(out.len());
        out[..count].copy_from_slice(&ready[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// Reads until it is clear which of `beginnings` the input has, if any: no further than that, since a writer may be waiting.
fn read_head(reader: &mut impl Read, beginnings: &[&[u8]]) -> IoResult<Vec<u8>> {
    let mut head = Vec::new();
    let mut chunk = [0; 16];
    while beginnings.iter().any(|whole| head.len() < whole.len() && whole.starts_with(&head)) {
        match read_some(reader, &mut chunk)? {
            0 => break,
            count => head.extend_from_slice(&chunk[..count]),
        }
    }
    Ok(head)
}

fn read_some(reader: &mut impl Read, out: &mut [u8]) -> IoResult<usize> {
    loop {
        match reader.read(out) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// A stream of zstd frames, one behind another, each held to its checksum.
struct Zstd<R: Read> {
    source: BufReader<R>,
    /// The frame under way.
    frame: Option<FrameDecoder>,
}

impl<R: Read> Zstd<R> {
    fn new(reader: R) -> Self {
        Zstd { source: BufReader::new(reader), frame: None }
    }

    /// The next frame; none at the end.
    fn next_frame(&mut self) -> IoResult<Option<FrameDecoder>> {
        while !self.source.fill_buf()?.is_empty() {
            let mut frame = FrameDecoder::new();
            match frame.init(&mut self.source) {
                Ok(()) => return Ok(Some(frame)),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    std::io::copy(&mut self.source.by_ref().take(u64::from(length)), &mut std::io::sink())?;
                }
                Err(error) => return Err(damaged(&error)),
            }
        }
        Ok(None)
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, out: &mut [u8]) -> IoResult<usize> {
        loop {
            let mut frame = match self.frame.take() {
                Some(frame) => frame,
                None => match self.next_frame()? {
                    Some(frame) => frame,
                    None => return Ok(0),
                },
            };
            while frame.can_collect() == 0 && !frame.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                frame.decode_blocks(&mut self.source, one).map_err(|error| damaged(&error))?;
            }
            let read = frame.read(out)?;
            if read > 0 || out.is_empty() {
                self.frame = Some(frame);
                return Ok(read);
            }
            let expected = frame.get_checksum_from_data();
            if expected.is_some() && expected != frame.get_calculated_checksum() {
                return Err(invalid("zstd: the checksum does not match: the file is damaged".into()));
            }
        }
    }
}

fn damaged(error: &FrameDecoderError) -> IoError {
    invalid(format!("zstd: {error}"))
}

fn invalid(message: String) -> IoError {
    IoError::new(ErrorKind::InvalidData, message)
}

fn utf16(sign: &str, encoding: &str) -> IoError {
    invalid(format!("expected UTF-8, got {sign}, as in UTF-16; convert it first: iconv -f {encoding} -t UTF-8"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Reads all; gives the text, or what the error says.
    fn text(bytes: &[u8]) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        match TextReader::new(Cursor::new(bytes.to_vec())).read_to_end(&mut out) {
            Ok(_) => Ok(out),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The same from a reader that gives one byte at a time, and from a file.
    #[track_caller]
    fn all_ways(bytes: &[u8]) -> Result<Vec<u8>, String> {
        struct OneByOne(Cursor<Vec<u8>>);
        impl Read for OneByOne {
            fn read(&mut self, out: &mut [u8]) -> IoResult<usize> {
                let length = out.len().min(1);
                self.0.read(&mut out[..length])
            }
        }
        let whole = text(bytes);
        let mut out = Vec::new();
        let mut slow = TextReader::new(OneByOne(Cursor::new(bytes.to_vec())));
        let slow = slow.read_to_end(&mut out).map(|_| out).map_err(|error| error.to_string());
        assert_eq!(whole, slow);
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(bytes).expect("written");
        let from_file = open(file.path()).map_err(|error| error.to_string()).and_then(|(mut reader, _)| {
            let mut out = Vec::new();
            reader.read_to_end(&mut out).map(|_| out).map_err(|error| error.to_string())
        });
        assert_eq!(whole.is_ok(), from_file.is_ok(), "{whole:?}, {from_file:?}");
        assert_eq!(whole.clone().ok(), from_file.ok());
        whole
    }

    pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn one_byte_order_mark_is_dropped() {
        assert_eq!(all_ways(b"\xef\xbb\xbfa\xef\xbb\xbf\n").unwrap(), b"a\xef\xbb\xbf\n");
        assert_eq!(all_ways(b"\xef\xbb\xbf\xef\xbb\xbfa").unwrap(), b"\xef\xbb\xbfa");
        assert_eq!(all_ways(b"\xef\xbb\xbf").unwrap(), b"");
        assert_eq!(all_ways(b"\xef\xbba").unwrap(), b"\xef\xbba");
        assert_eq!(all_ways(&gzip(b"\xef\xbb\xbfa")).unwrap(), b"a");
        assert_eq!(all_ways(b"").unwrap(), b"");
    }

    #[test]
    fn utf16_is_named() {
        let utf16 = |text: &str, order: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(order).collect::<Vec<u8>>();
        for (mark, order) in [(b"\xff\xfe", u16::to_le_bytes as fn(u16) -> [u8; 2]), (b"\xfe\xff", u16::to_be_bytes)] {
            let error = all_ways(&[&mark[..], &utf16("A dog.\n", order)].concat()).unwrap_err();
            assert!(error.contains("byte order mark") && error.contains("iconv -f UTF-16 "), "{error}");
        }
        let error = |bytes: &[u8]| all_ways(bytes).unwrap_err();
        assert!(error(&utf16("A dog.\n", u16::to_le_bytes)).contains("iconv -f UTF-16LE"));
        assert!(error(&utf16("A dog.\n", u16::to_be_bytes)).contains("iconv -f UTF-16BE"));
        // In Chinese the line break alone has a zero byte.
        assert!(error(&utf16("\u{4e2d}\u{6587}\n\u{4e2d}", u16::to_le_bytes)).contains("UTF-16LE"));
        assert!(error(&gzip(&utf16("A dog.\n", u16::to_le_bytes))).contains("UTF-16LE"));
        assert!(error(&gzip(&[b"\xff\xfe", &utf16("A dog.\n", u16::to_le_bytes)[..]].concat())).contains("order mark"));
        let mut late = vec![b'a'; CHECKED_BYTES - 1];
        late.push(0);
        assert!(all_ways(&late).is_err());
        late.insert(0, b'a');
        assert_eq!(all_ways(&late).unwrap(), late);
    }

    #[test]
    fn compressed_text_is_read_as_text() {
        let long = "Zwei Hunde laufen.\n".repeat(40_000).into_bytes();
        for bytes in [&b""[..], b"a\n", &long] {
            assert_eq!(all_ways(&gzip(bytes)).unwrap(), bytes);
            assert_eq!(all_ways(&zstd(bytes)).unwrap(), bytes);
        }
        // Several members or frames, and a frame that is to be skipped, as pzstd writes it in front.
        assert_eq!(all_ways(&[gzip(b"a\n"), gzip(b"b\n")].concat()).unwrap(), b"a\nb\n");
        let skipped = b"\x50\x2a\x4d\x18\x03\0\0\0xyz";
        assert_eq!(all_ways(&[&zstd(b"a\n")[..], skipped, &zstd(b"b\n")].concat()).unwrap(), b"a\nb\n");
        for (magic, name) in [(&b"\xfd7zXZ\0..."[..], "xz"), (b"BZh91AY&SY...", "bzip2"), (b"PK\x03\x04...", "zip")] {
            let error = all_ways(magic).unwrap_err();
            assert!(error.contains(name) && error.contains("decompress"), "{error}");
        }
        assert_eq!(all_ways(b"BZh is text, PK too\n").unwrap(), b"BZh is text, PK too\n");
    }

    #[test]
    fn damage_is_an_error() {
        let text = "Zwei Hunde laufen durch den Schnee.\n".repeat(50).into_bytes();
        for whole in [gzip(&text), zstd(&text)] {
            for cut in [5, whole.len() / 2, whole.len() - 1] {
                assert!(all_ways(&whole[..cut]).is_err(), "cut at {cut}");
            }
            for at in 4..whole.len() {
                let mut spoilt = whole.clone();
                spoilt[at] ^= 0x10;
                // A header's time or name may differ; the text may not.
                assert!(super::tests::text(&spoilt).map_or(true, |read| read == text), "byte {at}");
            }
        }
    }
}
