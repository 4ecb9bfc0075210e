//! The option `--device` of both programs.

use std::str::FromStr;

use candle_core::Device;
use candle_core::utils::{cuda_is_available, metal_is_available};
use clap::Args;

use crate::Failure;

/// The option `--device`.
#[derive(Debug, Clone, Copy, Args)]
pub struct DeviceOption {
    /// Device to compute on: auto, cpu, cuda, cuda:N (GPU number N) or metal; auto: a GPU if the program was built for one
    /// and finds one, else the CPU
    #[arg(long, value_name = "DEVICE", default_value = "auto", hide_default_value = true)]
    device: Name,
}

/// The value of `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Auto,
    Cpu,
    Cuda(usize),
    Metal,
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || "it must be auto, cpu, cuda, cuda:N or metal".to_owned();
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => text.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Self::Cuda).ok_or_else(unknown),
        }
    }
}

impl DeviceOption {
    /// Opens the device. It is an error of the input if the program was built without it, or if the machine does not have it.
    pub fn open(self) -> Result<Device, Failure> {
        let (name, feature, built, device) = match self.device {
            Name::Auto => return Ok(best()),
            Name::Cpu => return Ok(Device::Cpu),
            Name::Cuda(n) => (format!("cuda:{n}"), "cuda", cuda_is_available(), Device::new_cuda(n)),
            Name::Metal => ("metal".to_owned(), "metal", metal_is_available(), Device::new_metal(0)),
        };
        if !built {
            return Err(Failure::input(format!(
                "--device {name}: the program was built without the cargo feature `{feature}`; build it with `--features \
                 {feature}`, or use `--device cpu`"
            )));
        }
        device.map_err(|error| {
            Failure::input(format!("--device {name}: {error}; check the driver, or use `--device cpu`"))
        })
    }
}

/// A GPU if the program was built for one and the machine has one, else the CPU.
fn best() -> Device {
    let device = match () {
        () if cuda_is_available() => Device::new_cuda(0),
        () if metal_is_available() => Device::new_metal(0),
        () => return Device::Cpu,
    };
    device.unwrap_or_else(|error| {
        tracing::warn!("no GPU found ({error}); computing on the CPU");
        Device::Cpu
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Arguments {
        #[command(flatten)]
        device: DeviceOption,
    }

    fn option(value: &str) -> Result<DeviceOption, clap::Error> {
        Arguments::try_parse_from(["prog", "--device", value]).map(|arguments| arguments.device)
    }

    #[test]
    fn a_device_is_named_with_an_optional_number() {
        for (text, name) in [
            ("auto", Name::Auto),
            ("cpu", Name::Cpu),
            ("cuda", Name::Cuda(0)),
            ("cuda:3", Name::Cuda(3)),
            ("metal", Name::Metal),
        ] {
            assert_eq!(option(text).unwrap().device, name);
        }
        assert_eq!(Arguments::try_parse_from(["prog"]).unwrap().device.device, Name::Auto);
        for text in ["gpu", "cuda:", "cuda:x", "cuda:-1", "metal:1", "CPU"] {
            assert!(
                option(text).unwrap_err().to_string().contains("it must be auto, cpu, cuda, cuda:N or metal"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_device_that_is_not_compiled_in_is_an_error_with_the_feature() {
        assert!(option("cpu").unwrap().open().unwrap().is_cpu());
        for (text, feature, built) in
            [("cuda:1", "cuda", cuda_is_available()), ("metal", "metal", metal_is_available())]
        {
            if !built {
                let failure = format!("{:?}", option(text).unwrap().open().unwrap_err());
                assert!(failure.contains(&format!("--device {text}: the program was built without")), "{failure}");
                assert!(
                    failure.contains(&format!("`--features {feature}`")) && failure.contains("code: 2"),
                    "{failure}"
                );
            }
        }
        if !cuda_is_available() && !metal_is_available() {
            assert!(option("auto").unwrap().open().unwrap().is_cpu());
        }
    }
}
