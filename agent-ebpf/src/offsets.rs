//! Field offsets of kernel structs, set by the loader from the running kernel's BTF (agent/src/sys/btf.rs). They are
//! read-only globals: the verifier knows their values, so an access costs what a compiled-in offset costs.

use core::ptr::read_volatile;

macro_rules! offsets {
    ($($(#[$meta:meta])* $name:ident, $getter:ident;)*) => {
        $(
            $(#[$meta])*
            #[no_mangle]
            static $name: u32 = 0;

            #[inline(always)]
            pub fn $getter() -> usize {
                // SAFETY: a static of this program; volatile, because the loader changes it before the load.
                unsafe { read_volatile(&raw const $name) as usize }
            }
        )*
    };
}

offsets! {
    OFF_SK_FAMILY, sk_family;
    OFF_SK_RCV_SADDR, sk_rcv_saddr;
    OFF_SK_DADDR, sk_daddr;
    OFF_SK_V6_RCV_SADDR, sk_v6_rcv_saddr;
    OFF_SK_V6_DADDR, sk_v6_daddr;
    OFF_SK_NUM, sk_num;
    OFF_SK_DPORT, sk_dport;
    OFF_SK_NET, sk_net;
    OFF_SK_TYPE, sk_type;
    OFF_SK_PROTOCOL, sk_protocol;
    OFF_SK_SOCKET, sk_socket;
    OFF_SK_ERR, sk_err;
    OFF_SK_STATE, sk_state;
    OFF_SOCKET_FILE, socket_file;
    OFF_SOCKET_SK, socket_sk;
    OFF_FILE_FLAGS, file_flags;
    OFF_NET_INUM, net_inum;
    OFF_SK_WMEM_QUEUED, sk_wmem_queued;
    OFF_SK_FLAGS, sk_flags;
    OFF_SK_SNDBUF, sk_sndbuf;
    OFF_TP_SND_NXT, tp_snd_nxt;
    OFF_TP_NOTSENT_LOWAT, tp_notsent_lowat;
    OFF_TP_WRITE_SEQ, tp_write_seq;
    OFF_TP_COPIED_SEQ, tp_copied_seq;
    OFF_TP_RCV_NXT, tp_rcv_nxt;
    OFF_TP_SND_UNA, tp_snd_una;
    OFF_TP_BYTES_ACKED, tp_bytes_acked;
    OFF_TP_BYTES_RECEIVED, tp_bytes_received;
    OFF_UNIX_PEER, unix_peer;
    OFF_TASK_PID, task_pid;
    OFF_TASK_TGID, task_tgid;
    OFF_TASK_REAL_PARENT, task_real_parent;
    OFF_BPRM_FILENAME, bprm_filename;
}

#[cfg(feature = "untyped")]
offsets! {
    OFF_SK_SHUTDOWN, sk_shutdown;
    /// From the `struct socket` to the number of its inode.
    OFF_SOCKET_INODE_NUMBER, socket_inode_number;
    OFF_TASK_FILES, task_files;
    OFF_FILES_TABLE, files_table;
    OFF_TABLE_SIZE, table_size;
    OFF_TABLE_FILES, table_files;
    OFF_FILE_INODE, file_inode;
    OFF_FILE_PRIVATE_DATA, file_private_data;
    OFF_INODE_MODE, inode_mode;
}

#[cfg(feature = "scalars")]
offsets! {
    OFF_TASK_STACK, task_stack;
}
