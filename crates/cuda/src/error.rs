//! Errors of this crate.

use cudarc::driver::DriverError;

/// What can go wrong on the way to a device and back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no usable CUDA device: no driver library, a driver that does not start, or too few devices.
    #[error("no CUDA device: {0}")]
    NoDevice(String),
    /// This build carries no kernels, because there was no `nvcc` when it was made.
    #[error("this build has no CUDA kernels: nvcc was not found when it was built (see scripts/cuda-toolchain)")]
    NoKernels,
    /// A driver call failed.
    #[error("{call} failed: {code}: {text}{}", in_brackets(details))]
    Driver {
        /// The driver function.
        call: &'static str,
        /// The driver's name of the error.
        code: String,
        /// The driver's description of the error.
        text: String,
        /// What the call was about: sizes, names; may be empty.
        details: String,
    },
    /// A library of NVIDIA's is not installed, or not where the loader looks.
    #[error("{library} was not found: install the CUDA {major} libraries, or add their folder to LD_LIBRARY_PATH")]
    NoLibrary {
        /// Its name.
        library: &'static str,
        /// The CUDA version this build is for.
        major: u32,
    },
    /// A call of such a library failed.
    #[error("{call} failed: {status}{}", in_brackets(details))]
    Library {
        /// The function.
        call: &'static str,
        /// The library's name of the error.
        status: String,
        /// What the call was about; may be empty.
        details: String,
    },
    /// Sizes of the arguments do not fit together.
    #[error("{0}")]
    Size(String),
}

fn in_brackets(details: &str) -> String {
    if details.is_empty() { String::new() } else { format!(" ({details})") }
}

/// Adds what was being done to the result of a driver call.
pub(crate) trait Context<T> {
    /// `details` is evaluated on failure only.
    fn during(self, call: &'static str, details: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Context<T> for Result<T, DriverError> {
    fn during(self, call: &'static str, details: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|error| {
            let text = |found: Result<&std::ffi::CStr, DriverError>| {
                found.map_or_else(|_| format!("error {}", error.0 as u32), |text| text.to_string_lossy().into_owned())
            };
            Error::Driver { call, code: text(error.error_name()), text: text(error.error_string()), details: details() }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_shown_where_there_are_any() {
        let driver = |details: &str| {
            let [code, text, details] = ["CODE", "text", details].map(String::from);
            Error::Driver { call: "cuCall", code, text, details }.to_string()
        };
        assert_eq!(driver("4 bytes"), "cuCall failed: CODE: text (4 bytes)");
        assert_eq!(driver(""), "cuCall failed: CODE: text");
        let library = |details: &str| {
            Error::Library { call: "call", status: "STATUS".into(), details: details.into() }.to_string()
        };
        assert_eq!(
            (library("2 x 3"), library("")),
            ("call failed: STATUS (2 x 3)".into(), "call failed: STATUS".into())
        );
    }
}
