//! Every reason for which either side may lose something, by name. A reason that is not here cannot happen.

macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $value:literal => ($stage:literal, $label:literal),)* }) => {
        $(#[$meta])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vmeta])* $variant = $value,)* }

        impl $name {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The pair (stage or metric group, label) it is exported under.
            pub const fn label(self) -> (&'static str, &'static str) {
                match self { $(Self::$variant => ($stage, $label),)* }
            }
        }
    };
}

reasons! {
    /// Index into the kernel side's per-CPU array COUNTERS. The first word of the label is how it is exported:
    /// `exchanges` as `spanwire_exchanges_total{side}`, `opaque` as `spanwire_opaque_sockets_total{reason}`,
    /// `kernel` as `spanwire_dropped_total{stage="kernel",reason}`, `note` as `spanwire_kernel_notes_total{reason}`.
    KernelCounter {
        /// A server-side message pair came to its end (sent or dropped).
        ExchangesServer = 0 => ("exchanges", "server"),
        /// A client-side message pair came to its end.
        ExchangesClient = 1 => ("exchanges", "client"),
        /// The ring buffer was full: an exchange was lost.
        RingFullExchange = 2 => ("kernel", "ring_full"),
        /// The exchange's user agent, path (OTLP) or peer (the agent) is excluded.
        Excluded = 3 => ("kernel", "excluded"),
        /// More pipelined requests than are kept.
        PipelineFull = 4 => ("kernel", "pipeline_full"),
        /// No room in a state map.
        StateFull = 5 => ("kernel", "state_full"),
        /// The ring buffer was full: a text or process record was lost.
        RingFullOther = 6 => ("note", "ring_full_other"),
        /// The ring buffer was full: an exchange of a process that nobody had classified yet was lost. Whether it counts as a
        /// lost one depends on whether everything is captured.
        RingFullProvisional = 7 => ("note", "ring_full_provisional"),
        /// The socket began with a TLS record.
        OpaqueTls = 8 => ("opaque", "tls"),
        /// The socket began with the HTTP/2 preface.
        OpaqueHttp2 = 9 => ("opaque", "http2"),
        /// Out of step, or a head that cannot be trusted (CL+TE, bare LF, obs-fold, NUL, over 16 KiB).
        OpaqueFraming = 10 => ("opaque", "framing"),
        /// Older than the agent, and no boundary could be proven.
        OpaqueLateJoin = 11 => ("opaque", "late_join"),
        /// Its calls come by io_uring.
        OpaqueIoUring = 12 => ("opaque", "io_uring"),
        /// Upgraded, or a CONNECT tunnel.
        OpaqueUpgrade = 13 => ("opaque", "upgrade"),
        /// Not HTTP/1.
        OpaqueProtocol = 14 => ("opaque", "protocol"),
        /// A user buffer could not be read where a head was expected.
        UnreadableBuffer = 16 => ("note", "unreadable_buffer"),
        /// A 32-bit task: skipped.
        CompatTask = 17 => ("note", "compat_task"),
        /// A call without a user buffer (sendfile, splice) where a head was expected.
        NoUserBuffer = 18 => ("note", "no_user_buffer"),
        /// The thread rule contradicted itself and the process was demoted.
        Demoted = 19 => ("note", "demoted"),
        /// A client and a server met on the wire.
        WireMatched = 20 => ("note", "wire_matched"),
        /// Bytes passed that no hook saw: the socket's open exchange ended as out of step, and it is joined again after
        /// its next whole response.
        MissedBytes = 21 => ("note", "missed_bytes"),
        /// A request left with a trace context that was put in or corrected.
        Injected = 22 => ("injections", "ok"),
        /// A request of a socket that is enrolled was left as it is, by rule.
        InjectionSkipped = 23 => ("injections", "skipped"),
        /// The kernel failed at it, and the request left as it was.
        InjectionFailed = 29 => ("injections", "failed"),
        /// ... and it is not certain that it did.
        InjectionDoubtful = 30 => ("note", "injection_doubtful"),
        /// A socket was enrolled.
        Enrolled = 31 => ("note", "enrolled"),
        /// A socket could not be enrolled.
        EnrolFailed = 32 => ("note", "enrol_failed"),
        /// A socket was removed again before it was closed.
        Removed = 33 => ("note", "enrolment_ended"),
        /// An enrolled socket had no room for a longer request at that moment.
        NoRoom = 34 => ("note", "injection_no_room"),
        /// A thread was preempted while it looked at a message, and another one's was not looked at.
        MessageBusy = 35 => ("note", "injection_busy"),
        /// A response left with the trace id in it.
        Returned = 36 => ("note", "returned"),
        /// A response that was to bear the trace id left without it.
        ReturnFailed = 37 => ("note", "return_failed"),
        /// A user buffer was read.
        UserReads = 24 => ("cost", "user_reads"),
        /// A clock was read.
        ClockReads = 25 => ("cost", "clock_reads"),
        /// A hash map was asked or changed.
        MapOperations = 26 => ("cost", "map_operations"),
        /// A ring record was written.
        Records = 27 => ("cost", "records"),
        /// A program ran past its filters.
        ProgramRuns = 28 => ("cost", "program_runs"),
    }
}

/// Elements of the per-CPU array COUNTERS.
pub const KERNEL_COUNTERS: usize = 64;

reasons! {
    /// Why user space lost an exchange before it became a span: `spanwire_dropped_total{stage,reason}`.
    UserDrop {
        /// The record's length, kind or version was not what this build writes.
        Malformed = 0 => ("decode", "malformed"),
        /// A hole in a CPU's sequence numbers.
        LostRecord = 1 => ("decode", "lost_record"),
        /// The process turned out to be excluded once it was classified; or the path, user agent or peer is.
        ExcludedProcess = 2 => ("assemble", "excluded"),
        /// The settle window's bound was reached; the oldest span left early. Not lost, but its trace may be cut.
        SettleFull = 3 => ("assemble", "settle_full"),
        /// A queue between tasks was full.
        QueueFull = 4 => ("pipeline", "queue_full"),
        /// Not sampled.
        NotSampled = 5 => ("sample", "not_sampled"),
        /// An opaque call whose request is not known: only those of a traced request are spans.
        OpaqueUncaused = 6 => ("assemble", "opaque_uncaused"),
        /// The application's own SDK tells of it (`capture.sdk`).
        ToldBySdk = 7 => ("assemble", "told_by_sdk"),
    }
}
