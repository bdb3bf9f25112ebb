//! The least reading of HTTP answers that does.

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

/// Reads answers from a connection: status and length of the body are all that is looked at.
#[derive(Debug)]
pub struct Answers {
    buffer: Vec<u8>,
    filled: usize,
    /// Where the next answer begins.
    taken: usize,
}

/// An answer.
#[derive(Debug)]
pub struct Answer<'a> {
    pub status: u16,
    pub head: &'a [u8],
    pub body: &'a [u8],
}

impl Answer<'_> {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.body).into_owned()
    }

    /// Returns the value of a header, named in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.head).ok()?.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            buffer: vec![0; 64 * 1024],
            filled: 0,
            taken: 0,
        }
    }
}

impl Answers {
    /// Reads the next answer; that to a HEAD has no body.
    pub async fn next<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        to_head: bool,
    ) -> Result<Answer<'_>> {
        self.buffer.copy_within(self.taken..self.filled, 0);
        self.filled -= self.taken;
        self.taken = 0;
        let head = loop {
            if let Some(end) = end_of_head(&self.buffer[..self.filled]) {
                break end;
            }
            self.fill(stream).await?;
        };
        let text = std::str::from_utf8(&self.buffer[..head])?;
        let status = text.get(9..12).context("no status line")?.parse()?;
        let chunked = !to_head && is_chunked(text);
        let length = if to_head { 0 } else { content_length(text)? };
        let end = if chunked {
            self.join_chunks(stream, head).await?
        } else {
            while self.filled < head + length {
                self.fill(stream).await?;
            }
            self.taken = head + length;
            self.taken
        };
        Ok(Answer {
            status,
            head: &self.buffer[..head],
            body: &self.buffer[head..end],
        })
    }

    /// Reads a body in chunks (RFC 9112, section 7.1) and moves them together; returns where it ends.
    async fn join_chunks<S: AsyncRead + Unpin>(&mut self, stream: &mut S, start: usize) -> Result<usize> {
        let (mut end, mut next) = (start, start);
        loop {
            let line = loop {
                let rest = &self.buffer[next..self.filled];
                if let Some(length) = rest.windows(2).position(|window| window == b"\r\n") {
                    break length;
                }
                self.fill(stream).await?;
            };
            let size = usize::from_str_radix(std::str::from_utf8(&self.buffer[next..next + line])?, 16)?;
            next += line + 2;
            while self.filled < next + size + 2 {
                self.fill(stream).await?;
            }
            self.buffer.copy_within(next..next + size, end);
            end += size;
            next += size + 2;
            if size == 0 {
                self.taken = next;
                return Ok(end);
            }
        }
    }

    async fn fill<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> Result<()> {
        if self.filled == self.buffer.len() {
            self.buffer.resize(2 * self.filled, 0);
        }
        match stream.read(&mut self.buffer[self.filled..]).await? {
            0 => bail!("the connection was closed"),
            read => self.filled += read,
        }
        Ok(())
    }
}

/// Returns the position after the empty line that ends a head.
pub fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|position| position + 4)
}

fn is_chunked(head: &str) -> bool {
    head.lines()
        .any(|line| line.eq_ignore_ascii_case("transfer-encoding: chunked"))
}

fn content_length(head: &str) -> Result<usize> {
    let name = "content-length:";
    let line = head.lines().find(|line| {
        line.get(..name.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(name))
    });
    Ok(line.map_or(Ok(0), |line| line[name.len()..].trim().parse())?)
}
