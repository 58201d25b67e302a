use std::process::ExitCode;
pub(crate) fn vm(_kernel: &str, _command: &[String]) -> anyhow::Result<ExitCode> {
    anyhow::bail!("wip")
}
