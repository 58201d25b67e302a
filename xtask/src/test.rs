use std::process::ExitCode;
pub(crate) fn test(_all: bool) -> anyhow::Result<ExitCode> {
    anyhow::bail!("wip")
}
