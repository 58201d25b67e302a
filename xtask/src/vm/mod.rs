use std::process::ExitCode;
pub(crate) const SUPPORTED: [&str; 4] = ["5.10", "6.1", "6.12", "newest"];
pub(crate) fn vm(_kernel: &str, _command: &[String]) -> anyhow::Result<ExitCode> {
    anyhow::bail!("wip")
}
pub(crate) fn command(
    _kernel: &str,
    _dir: &std::path::Path,
    _command: &[String],
) -> anyhow::Result<std::process::Command> {
    anyhow::bail!("wip")
}
