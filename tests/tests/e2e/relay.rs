use crate::Case;
pub(crate) const CENTRAL: &[Case] = &[];
pub(crate) const CASES: &[Case] = &[];
