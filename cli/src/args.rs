// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line, as clap reads it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand};
use getbuf_bench::cases::Case;
use uring_getbuf::Engine;

/// Copies and sends files through io_uring leases, with the fastest way that this kernel offers.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Says what this kernel can do, and of what it cannot, why
    #[command(after_help = "Example:\n  getbuf probe --json")]
    Probe {
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Copies a file
    ///
    /// Holes of a file stay holes in a copy that has a name. Where it fails or is interrupted, the copy
    /// ends behind its last byte that is right.
    #[command(after_help = "Examples:\n  getbuf cp disk.img /backup/\n  zcat a.gz | getbuf cp - a")]
    Cp(CpArgs),
    /// Sends a file over TCP, to one receiver or to many, and closes the connections for writing
    #[command(after_help = "Examples:\n  getbuf send disk.img host.example:9000\n  \
                            getbuf send disk.img one:9000 two:9000 three:9000 --patience 10\n  \
                            tar c . | getbuf send - [::1]:9000")]
    Send(SendArgs),
    /// Listens for TCP connections, and passes each on to another address, both ways
    #[command(after_help = "Example:\n  getbuf proxy 0.0.0.0:8080 127.0.0.1:80")]
    Proxy(ProxyArgs),
    /// Measures every way of moving bytes that this kernel offers, side by side
    #[command(
        after_help = "Cases:\n  rfc        a page of the page cache to /dev/null, 1 to 32 in \
                            flight\n  file-file  file-tcp  file-unix  pipe-tcp\n             \
                            blocks of 4 KiB to 1 MiB\n  flows      1 to 1,024 connections on one \
                            ring\n  fan-out    one source to 1 to 8 sinks\n\nExample:\n  getbuf \
                            bench rfc --report rfc.html"
    )]
    Bench(BenchArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchArgs {
    /// What to measure [default: everything]
    #[arg(value_name = "CASE", value_parser = case)]
    pub(crate) cases: Vec<&'static Case>,
    /// Seconds that it takes, about: more of them make the figures steadier
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub(crate) time: u32,
    /// Requests in each sample, of at most 64 MiB altogether, however long they take: for machines
    /// whose clock counts instructions
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) requests: Option<u64>,
    /// Samples of each way, at least
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) repeats: u16,
    /// Only the ways whose names have this in them
    #[arg(long, value_name = "TEXT")]
    pub(crate) only: Option<String>,
    /// Where to make the files, 64 MiB without names [default: the folder for temporary files]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) dir: Option<PathBuf>,
    /// Write everything as JSON to a file; - is the standard output, and then there is no table
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write a page with plots to a file
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,
}

fn case(name: &str) -> Result<&'static Case, String> {
    getbuf_bench::cases::find(name).ok_or_else(|| {
        let names: Vec<_> = getbuf_bench::cases::CASES.iter().map(|case| case.name).collect();
        format!("there are {}", names.join(", "))
    })
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CpArgs {
    /// The file to copy; - is the standard input
    pub(crate) source: PathBuf,
    /// Where to; a directory, for the same name in it; - is the standard output
    pub(crate) destination: PathBuf,
    /// Fill holes with zeros instead of keeping them
    #[arg(long)]
    pub(crate) no_holes: bool,
    #[command(flatten)]
    pub(crate) options: Options,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SendArgs {
    /// The file to send; - is the standard input
    pub(crate) source: PathBuf,
    /// Where to, as HOST:PORT; an IPv6 address in brackets. Each block is fetched once for all
    #[arg(value_name = "HOST:PORT", required = true, value_parser = receiver)]
    pub(crate) addresses: Vec<Address>,
    /// Give up a receiver whose name is not looked up, whose connection is not there, or that takes
    /// nothing for this long [default: wait]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) patience: Option<Duration>,
    /// Of many receivers, give up one that is so many blocks behind the fastest, which is at most
    /// one less than the leases in flight [default: the fastest waits]
    #[arg(long, value_name = "BLOCKS")]
    pub(crate) lag: Option<usize>,
    #[command(flatten)]
    pub(crate) options: Options,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ProxyArgs {
    /// Where to listen, as HOST:PORT; an IPv6 address in brackets. Port 0 is one that is free, which
    /// it prints
    #[arg(value_name = "LISTEN")]
    pub(crate) listen: Address,
    /// Where to pass connections on to, as HOST:PORT; an IPv6 address in brackets. It is looked up once
    #[arg(value_name = "UPSTREAM", value_parser = receiver)]
    pub(crate) upstream: Address,
    /// Give up one of the upstream's addresses that is not connected to for this long, and try the
    /// next [default: as long as the system tries]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) connect_timeout: Option<Duration>,
    /// Reset a connection of which nothing is moved, either way, for this long [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) idle_timeout: Option<Duration>,
    /// Most connections at a time; others wait. Each has two leases, one for each direction
    /// [default: 1024, or what fits RLIMIT_MEMLOCK]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=8192))]
    pub(crate) connections: Option<u16>,
    /// Bytes in one lease; K and M are understood [default: 16K, or what fits RLIMIT_MEMLOCK]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(crate) block_size: Option<u32>,
    /// How to get at what a socket has: opcode, module or copy [default: the best that works]
    #[arg(long, value_name = "ENGINE")]
    pub(crate) engine: Option<Engine>,
    /// Print nothing but what ends it
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// What every transfer can be told.
#[derive(Debug, ClapArgs)]
pub(crate) struct Options {
    /// How to get at the file's bytes: opcode, module or copy [default: the best that works]
    #[arg(long, value_name = "ENGINE")]
    pub(crate) engine: Option<Engine>,
    /// Bytes in one lease; K and M are understood [default: 256K, or what fits RLIMIT_MEMLOCK]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(crate) block_size: Option<u32>,
    /// Leases in flight [default: 16, or what fits RLIMIT_MEMLOCK]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16384))]
    pub(crate) depth: Option<u16>,
    /// Print nothing but errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// HOST:PORT.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Address {
    /// Without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or("HOST:PORT is wanted: there is no port")?;
        let port = port.parse();
        let port = port.map_err(|_| "HOST:PORT is wanted: a port is a number up to 65535")?;
        let host = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
            Some(inside) => inside.ok_or("a bracket is not closed")?,
            None if host.contains(':') => {
                return Err("an IPv6 address goes in brackets, as in [::1]:9000");
            }
            None => host,
        };
        if host.is_empty() {
            return Err("HOST:PORT is wanted: there is no host");
        }
        Ok(Self { host: host.into(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// An address that can be connected to.
fn receiver(text: &str) -> Result<Address, &'static str> {
    let address: Address = text.parse()?;
    match address.port {
        0 => Err("HOST:PORT is wanted: a port is a number from 1 to 65535"),
        _ => Ok(address),
    }
}

/// "10", "0.5".
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| *seconds > 0.0);
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "a number of seconds is wanted, such as 10 or 0.5".into())
}

/// "64K", "1M", "4096".
fn bytes(text: &str) -> Result<u32, String> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        _ => (text, 0),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "a number of bytes is wanted, such as 65536, 64K or 1M".to_string())?;
    match number.checked_shl(shift).filter(|bytes| bytes >> shift == number) {
        Some(0) => Err("a block has at least 1 byte".into()),
        // It is as much as is pinned and lent.
        Some(bytes @ 1..=0x4000_0000) => match bytes % rustix::param::page_size() as u64 {
            0 => Ok(bytes as u32),
            _ => Err(format!("a block is a multiple of {} bytes", rustix::param::page_size())),
        },
        _ => Err("a block has at most 1024M".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("64K"), Ok(65536));
        assert_eq!(bytes("1m"), Ok(1 << 20));
        for bad in
            ["", "K", "0", "3", "4097", "-1", "1G", "2000M", "64 K", "18446744073709551615M", "é"]
        {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(seconds("10"), Ok(Duration::from_secs(10)));
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["", "0", "-1", "x", "NaN", "inf", "1e300"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses() {
        for good in ["host.example:9000", "127.0.0.1:1", "[::1]:65535", "[fe80::1%lo]:80"] {
            assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "host",
            ":9000",
            "[]:9000",
            "host:",
            "host:-1",
            "host:65536",
            "::1:9000",
            "[::1:90",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        assert!(receiver("host:1").is_ok());
        assert!(receiver("host:0").is_err() && "host:0".parse::<Address>().is_ok());
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
