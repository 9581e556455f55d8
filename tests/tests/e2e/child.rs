use crate::Case;
pub(crate) const CENTRAL: &[Case] = &[];
pub(crate) const CASES: &[Case] = &[];
pub(crate) const FLAG: &str = "--child";
pub(crate) fn main(_: &[String]) -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
