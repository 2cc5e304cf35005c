//! Compression of what is written.

use std::io::{Result as IoResult, Write};

use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

/// How a part is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not.
    #[default]
    None,
    /// gzip (RFC 1952), without a time: the same rows give the same bytes.
    Gzip,
    /// Zstandard (RFC 8878), in frames of 1 MiB of text or a little more.
    Zstd,
}

impl Compression {
    /// What a file's name says.
    pub fn of_name(name: &str) -> Self {
        match name.rsplit_once('.') {
            Some((_, "gz")) => Compression::Gzip,
            Some((_, "zst")) => Compression::Zstd,
            _ => Compression::None,
        }
    }

    /// What a name has at its end.
    pub fn extension(self) -> &'static str {
        match self {
            Compression::None => "",
            Compression::Gzip => ".gz",
            Compression::Zstd => ".zst",
        }
    }
}

/// Text of a frame.
const FRAME: usize = 1 << 20;

/// Compresses what is written to it; [`Compressor::finish`] writes the end.
#[derive(Debug)]
pub enum Compressor<W: Write> {
    /// As it comes.
    None(W),
    /// gzip.
    Gzip(GzEncoder<W>),
    /// Zstandard, and the text of the frame under way.
    Zstd(W, Vec<u8>),
}

impl<W: Write> Compressor<W> {
    /// Compresses into `writer`.
    pub fn new(compression: Compression, writer: W) -> Self {
        match compression {
            Compression::None => Compressor::None(writer),
            Compression::Gzip => Compressor::Gzip(GzEncoder::new(writer, flate2::Compression::default())),
            Compression::Zstd => Compressor::Zstd(writer, Vec::new()),
        }
    }

    /// Writes the end; gives the writer back.
    ///
    /// # Errors
    /// The writer's.
    pub fn finish(self) -> IoResult<W> {
        match self {
            Compressor::None(writer) => Ok(writer),
            Compressor::Gzip(encoder) => encoder.finish(),
            Compressor::Zstd(mut writer, text) => {
                // Also of nothing: an empty file is no frame.
                writer.write_all(&compress_to_vec(&text[..], CompressionLevel::Fastest))?;
                Ok(writer)
            }
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> IoResult<usize> {
        match self {
            Compressor::None(writer) => writer.write(bytes),
            Compressor::Gzip(encoder) => encoder.write(bytes),
            Compressor::Zstd(writer, text) => {
                let taken = bytes.len().min(FRAME - text.len());
                text.extend_from_slice(&bytes[..taken]);
                if text.len() == FRAME {
                    writer.write_all(&compress_to_vec(&text[..], CompressionLevel::Fastest))?;
                    text.clear();
                }
                Ok(taken)
            }
        }
    }

    fn flush(&mut self) -> IoResult<()> {
        match self {
            Compressor::None(writer) | Compressor::Zstd(writer, _) => writer.flush(),
            Compressor::Gzip(encoder) => encoder.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_is_compressed_is_read_again_and_is_the_same_each_time() {
        let long: Vec<u8> = (0..3 * FRAME + 17).map(|at| (at * at / 7 % 251 + 1) as u8).collect();
        for text in [&b""[..], b"a\n", &long] {
            for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
                let compressed = |chunk: usize| {
                    let mut compressor = Compressor::new(compression, Vec::new());
                    text.chunks(chunk).for_each(|chunk| compressor.write_all(chunk).expect("memory"));
                    compressor.finish().expect("memory")
                };
                let bytes = compressed(65_536);
                let mut read = Vec::new();
                let mut reader = crate::input::TextReader::new(std::io::Cursor::new(bytes.clone()));
                reader.read_to_end(&mut read).expect("whole");
                assert!(read == text, "{compression:?}, {} bytes", text.len());
                assert!(compression == Compression::Gzip || bytes == compressed(1000), "{compression:?}");
            }
        }
        assert_eq!(Compression::of_name("a.b.gz"), Compression::Gzip);
        assert_eq!(Compression::of_name("a.zst"), Compression::Zstd);
        assert_eq!(Compression::of_name("gz"), Compression::None);
    }
}
