// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cases, and the points that are measured of each.

/// Where the bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file that is in the page cache.
    File,
    /// A pipe that a thread keeps full.
    Pipe,
}

/// Where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// /dev/null.
    Null,
    /// A file that has its blocks.
    File,
    /// A TCP connection on loopback. Who receives drops the bytes without looking at them
    /// (`MSG_TRUNC`).
    Tcp,
    /// A pair of UNIX stream sockets. Who receives copies the bytes once.
    Unix,
    /// The program's own memory, for a look at the first bytes of a block.
    Memory,
}

impl Source {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Pipe => "pipe",
        }
    }
}

impl Sink {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::File => "file",
            Self::Tcp => "tcp",
            Self::Unix => "unix",
            Self::Memory => "memory",
        }
    }

    pub(crate) const fn is_socket(self) -> bool {
        matches!(self, Self::Tcp | Self::Unix)
    }
}

/// What differs between the points of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Requests in flight.
    Depth,
    /// Bytes that one request moves.
    Block,
    /// Connections served at the same time, each with one request in flight.
    Flows,
    /// Sinks that each get every block.
    Sinks,
}

impl Axis {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Depth => "in flight",
            Self::Block => "block",
            Self::Flows => "flows",
            Self::Sinks => "sinks",
        }
    }
}

/// One thing that is measured, in every way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Bytes that a request moves.
    pub block: u32,
    /// Requests in flight to one sink.
    pub depth: u16,
    /// Flows, each with a sink of its own.
    pub flows: u16,
    /// Sinks of each flow.
    pub sinks: u16,
}

impl Point {
    /// Requests in flight altogether.
    pub(crate) const fn lanes(self) -> u16 {
        self.depth * self.flows
    }

    /// Where on the axis of its case it is.
    #[must_use]
    pub const fn on(self, axis: Axis) -> u64 {
        match axis {
            Axis::Depth => self.depth as u64,
            Axis::Block => self.block as u64,
            Axis::Flows => self.flows as u64,
            Axis::Sinks => self.sinks as u64,
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The name that the command line takes.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Where the bytes come from.
    pub source: Source,
    /// Where they go.
    pub sink: Sink,
    /// What differs between the points.
    pub axis: Axis,
    pub(crate) values: &'static [u32],
    pub(crate) base: Point,
}

const PAGE: Point = Point { block: 4096, depth: 1, flows: 1, sinks: 1 };
const BLOCKS: &[u32] = &[4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// Every case.
pub const CASES: [Case; 8] = [
    Case {
        name: "rfc",
        about: "a page of the page cache to /dev/null, as in the RFC's cover letter",
        source: Source::File,
        sink: Sink::Null,
        axis: Axis::Depth,
        values: &[1, 2, 4, 8, 16, 32],
        base: PAGE,
    },
    Case {
        name: "file-file",
        about: "file to file, 16 in flight",
        source: Source::File,
        sink: Sink::File,
        axis: Axis::Block,
        values: BLOCKS,
        base: Point { depth: 16, ..PAGE },
    },
    Case {
        name: "file-tcp",
        about: "file to one TCP connection",
        source: Source::File,
        sink: Sink::Tcp,
        axis: Axis::Block,
        values: BLOCKS,
        base: PAGE,
    },
    Case {
        name: "file-unix",
        about: "file to a UNIX stream socket",
        source: Source::File,
        sink: Sink::Unix,
        axis: Axis::Block,
        values: BLOCKS,
        base: PAGE,
    },
    Case {
        name: "pipe-tcp",
        about: "pipe to one TCP connection",
        source: Source::Pipe,
        sink: Sink::Tcp,
        axis: Axis::Block,
        values: BLOCKS,
        base: PAGE,
    },
    Case {
        name: "flows",
        about: "files to many TCP connections at once, 4 KiB",
        source: Source::File,
        sink: Sink::Tcp,
        axis: Axis::Flows,
        values: &[1, 4, 16, 64, 256, 1024],
        base: PAGE,
    },
    Case {
        name: "fan-out",
        about: "each block of a file to many TCP connections, 64 KiB",
        source: Source::File,
        sink: Sink::Tcp,
        axis: Axis::Sinks,
        values: &[1, 2, 4, 8],
        base: Point { block: 64 << 10, ..PAGE },
    },
    Case {
        name: "look",
        about: "a look at the first bytes of a lease: a copy of them in the program's memory",
        source: Source::File,
        sink: Sink::Memory,
        axis: Axis::Block,
        values: &[64, 4 << 10, 64 << 10],
        base: PAGE,
    },
];

impl Case {
    /// What is measured of it.
    pub fn points(&self) -> impl Iterator<Item = Point> + use<> {
        let Self { axis, base, .. } = *self;
        self.values.iter().map(move |value| match axis {
            Axis::Depth => Point { depth: *value as u16, ..base },
            Axis::Block => Point { block: *value, ..base },
            Axis::Flows => Point { flows: *value as u16, ..base },
            Axis::Sinks => Point { sinks: *value as u16, ..base },
        })
    }
}

/// The case with this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Case> {
    CASES.iter().find(|case| case.name == name)
}
