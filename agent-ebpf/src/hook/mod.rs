//! Programs: one file per hook family. An entry reads its arguments and hands over.

pub mod iter;
pub mod process;
pub mod sock;
pub mod sock_fexit;
pub mod state;
