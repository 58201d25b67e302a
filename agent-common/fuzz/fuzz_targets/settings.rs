//! Settings under which every kind of text is given.

use spanwire_common::abi::{setting, Settings};

/// Lists `x-tenant-id` (tenant, kept) and `cookie` (kept), excludes `kube-probe/`, asks for the user agent's text.
pub fn everything() -> Settings {
    let mut settings = Settings {
        flags: setting::USER_AGENT_TEXT,
        name_count: 2,
        user_agent_count: 1,
        ..Settings::default()
    };
    settings.user_agents[0] = [u64::from_le_bytes(*b"kube-pro"), u64::from_le_bytes(*b"be/\0\0\0\0\0")];
    let [first, second, ..] = &mut settings.names;
    first.words = [
        u64::from_le_bytes(*b"x-tenant"),
        u64::from_le_bytes(*b"-id\0\0\0\0\0"),
        0,
        0,
    ];
    (first.len, first.tenant, first.keep) = (11, 1, 1);
    second.words = [u64::from_le_bytes(*b"cookie\0\0"), 0, 0, 0];
    (second.len, second.keep) = (6, 1);
    spanwire_common::protocol::http1::skim::set_initials(&mut settings);
    settings
}
