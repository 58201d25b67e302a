//! A small blocking HTTP/1.1 client, so that a test knows every byte it sent and every answer it got.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{bail, Context, Result};

use crate::pace::patient;
use crate::service::Target;

/// No call in a test waits longer than this for a byte.
const IO_LIMIT: Duration = Duration::from_mins(1);

/// A response, read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

/// One connection, kept alive as long as both sides want.
pub struct Connection {
    stream: BufReader<Stream>,
    /// The `Host` header: the agent's own API answers only those who name it.
    host: String,
    open: bool,
}

impl Connection {
    pub fn open(target: &Target) -> Result<Self> {
        let stream = match target {
            Target::Tcp(addr) => {
                let stream = TcpStream::connect_timeout(addr, patient(IO_LIMIT))
                    .with_context(|| format!("connect to {addr}"))?;
                stream.set_read_timeout(Some(patient(IO_LIMIT)))?;
                stream.set_write_timeout(Some(patient(IO_LIMIT)))?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
            Target::Unix(path) => {
                let stream = UnixStream::connect(path).with_context(|| format!("connect to {}", path.display()))?;
                stream.set_read_timeout(Some(patient(IO_LIMIT)))?;
                stream.set_write_timeout(Some(patient(IO_LIMIT)))?;
                Stream::Unix(stream)
            }
        };
        let host = match target {
            Target::Tcp(addr) => addr.to_string(),
            Target::Unix(_) => "localhost".to_owned(),
        };
        Ok(Self {
            stream: BufReader::new(stream),
            host,
            open: true,
        })
    }

    /// False after a response that ended the connection.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Sends bytes as they are, in one call.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        match self.stream.get_mut() {
            Stream::Tcp(stream) => stream.write_all(bytes)?,
            Stream::Unix(stream) => stream.write_all(bytes)?,
        }
        Ok(())
    }

    /// A request with optional body, and its response.
    pub fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Response> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.host);
        for (name, value) in headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        if !body.is_empty() {
            head.extend(["Content-Length: ", &body.len().to_string(), "\r\n"]);
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.send(&bytes)?;
        self.receive(method == "HEAD")
    }

    pub fn get(&mut self, path: &str) -> Result<Response> {
        self.request("GET", path, &[], &[])
    }

    /// Reads one response; 1xx ones other than 101 are passed over.
    pub fn receive(&mut self, to_head: bool) -> Result<Response> {
        loop {
            let (status, headers) = self.receive_head()?;
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            let mut response = Response {
                status,
                headers,
                body: Vec::new(),
            };
            if !(to_head || status == 101 || status == 204 || status == 304) {
                response.body = self.receive_body(&response)?;
            }
            let close = response
                .header("connection")
                .is_some_and(|value| value.eq_ignore_ascii_case("close"));
            self.open = self.open && !close;
            return Ok(response);
        }
    }

    fn receive_head(&mut self) -> Result<(u16, Vec<(String, String)>)> {
        let status_line = self.line()?;
        if status_line.starts_with("HTTP/1.0") {
            self.open = false;
        }
        let status = status_line.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.with_context(|| format!("not a status line: {status_line:?}"))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok((status, headers));
            }
            let (name, value) = line
                .split_once(':')
                .with_context(|| format!("not a header line: {line:?}"))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    fn receive_body(&mut self, response: &Response) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        if response
            .header("transfer-encoding")
            .is_some_and(|value| value.contains("chunked"))
        {
            loop {
                let line = self.line()?;
                let size = line.split(';').next().unwrap_or_default().trim();
                let size = u64::from_str_radix(size, 16).with_context(|| format!("not a chunk size: {line:?}"))?;
                (&mut self.stream).take(size).read_to_end(&mut body)?;
                if size == 0 {
                    while !self.line()?.is_empty() {}
                    return Ok(body);
                }
                self.line()?;
            }
        } else if let Some(length) = response.header("content-length") {
            let length: u64 = length.parse()?;
            (&mut self.stream).take(length).read_to_end(&mut body)?;
            if (body.len() as u64) < length {
                bail!("the connection ended {} bytes early", length - body.len() as u64);
            }
        } else {
            self.stream.read_to_end(&mut body)?;
            self.open = false;
        }
        Ok(body)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            bail!("the connection ended inside a response head");
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }
}

/// One request on a connection of its own.
pub fn get(target: &Target, path: &str) -> Result<Response> {
    Connection::open(target)?.request("GET", path, &[("Connection", "close")], &[])
}
