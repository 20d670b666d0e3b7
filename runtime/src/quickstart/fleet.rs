//! A simulated roadside receiver: vehicles with tyre sensors of eight makes pass by, and it reports what it hears as rtl_433
//! prints it. The same seed gives the same reports.
//!
//! Each report says what must become of it ([`Fate`]), so that the proof at the end knows which acknowledged records have to
//! be found again and which ones the plugins may drop by their rules.

use std::collections::VecDeque;

use fastrand::Rng;

const PSI_PER_KPA: f64 = 0.145_037_738;
/// One report in so many is line noise, not JSON.
const GARBAGE_ONE_IN: u32 = 97;
/// One report in so many comes from a sensor that is no tyre.
const OTHER_SENSOR_ONE_IN: u32 = 61;
/// One burst in so many is heard more than once.
const REPEATED_ONE_IN: u32 = 5;
/// One report in so many carries no pressure.
const NO_PRESSURE_ONE_IN: u32 = 53;
/// One tyre in so many leaks; one in so many runs hot.
const LEAKING_ONE_IN: u32 = 40;
const HOT_ONE_IN: u32 = 150;

/// What must become of an acknowledged report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// A tyre's reading: normalised and stored.
    Stored,
    /// Not JSON: kept as a dead letter.
    DeadLetter,
    /// A repeat, a report without pressure, another kind of sensor: the plugins decide.
    PluginDecides,
}

/// What a report is, for the live counts.
#[derive(Debug, Clone)]
pub(super) struct Report {
    /// Sensor, or receiver where there is none: decides the partition.
    pub(super) key: String,
    /// The line.
    pub(super) line: String,
    pub(super) fate: Fate,
}

/// How a make reports pressure and temperature.
struct Make {
    model: &'static str,
    /// Renders fields between id and mic.
    fields: fn(&Reading) -> String,
    /// Numeric ids are printed as numbers.
    numeric_id: bool,
    mic: &'static str,
}

struct Reading {
    kpa: f64,
    celsius: f64,
    counter: u64,
}

impl Reading {
    fn psi(&self) -> f64 {
        self.kpa * PSI_PER_KPA
    }

    fn bar(&self) -> f64 {
        self.kpa / 100.0
    }

    fn fahrenheit(&self) -> f64 {
        self.celsius * 1.8 + 32.0
    }
}

/// Eight makes in the shapes of real captures: three units of pressure, two of temperature, ids of both kinds.
const MAKES: [Make; 8] = [
    Make {
        model: "Toyota",
        fields: |r| format!(r#""status" : 128, "pressure_PSI" : {:.3}, "temperature_C" : {:.3}"#, r.psi(), r.celsius),
        numeric_id: false,
        mic: "CRC",
    },
    Make {
        model: "Schrader",
        fields: |r| format!(r#""flags":"07","pressure_kPa":{:.3},"temperature_C":{:.3}"#, r.kpa, r.celsius),
        numeric_id: false,
        mic: "CRC",
    },
    Make {
        model: "Schrader-EG53MA4",
        fields: |r| {
            let (kpa, fahrenheit) = (r.kpa, r.fahrenheit());
            format!(r#""flags" : "4d930078", "pressure_kPa" : {kpa:.3}, "temperature_F" : {fahrenheit:.3}"#)
        },
        numeric_id: false,
        mic: "CHECKSUM",
    },
    Make {
        model: "BMW-GEN5",
        fields: |r| format!(r#""brand": 3, "pressure_kPa": {:.2}, "temperature_C": {:.1}, "flags1": 0"#, r.kpa, r.celsius),
        numeric_id: false,
        mic: "CRC",
    },
    Make {
        model: "Hyundai-VDO",
        fields: |r| {
            let repeat = r.counter % 4;
            format!(r#""state" : 48, "repeat" : {repeat}, "pressure_kPa" : {:.3}, "temperature_C" : {:.3}"#, r.kpa, r.celsius)
        },
        numeric_id: false,
        mic: "CRC",
    },
    Make {
        model: "Steelmate",
        fields: |r| {
            let (psi, fahrenheit) = (r.psi(), r.fahrenheit());
            format!(r#""pressure_PSI": {psi:.1}, "temperature_F": {fahrenheit:.0}, "battery_mV": 2900"#)
        },
        numeric_id: true,
        mic: "CHECKSUM",
    },
    Make {
        model: "TyreGuard-400",
        fields: |r| format!(r#""pressure_bar": {:.3}, "temperature_C": {:.1}, "add0": 0"#, r.bar(), r.celsius),
        numeric_id: true,
        mic: "CRC",
    },
    Make {
        model: "PMV-107J",
        fields: |r| {
            let (counter, kpa, celsius) = (r.counter % 8, r.kpa, r.celsius);
            format!(r#""battery" : "OK", "counter" : {counter}, "pressure_kPa" : {kpa:.3}, "temperature_C" : {celsius:.3}"#)
        },
        numeric_id: false,
        mic: "CRC",
    },
];

struct Tyre {
    make: usize,
    id: u32,
    kpa: f64,
    celsius: f64,
    leak_kpa: f64,
    counter: u64,
}

/// The tyres one receiver hears, and what it will say next.
pub(super) struct Fleet {
    receiver: String,
    rng: Rng,
    tyres: Vec<Tyre>,
    next: usize,
    repeats: VecDeque<Report>,
}

impl Fleet {
    /// `vehicles` with four tyres each.
    pub(super) fn new(receiver: &str, vehicles: usize, seed: u64) -> Fleet {
        let mut rng = Rng::with_seed(seed);
        let tyres = (0..vehicles * 4).map(|number| tyre(&mut rng, number)).collect();
        Fleet { receiver: receiver.to_owned(), rng, tyres, next: 0, repeats: VecDeque::new() }
    }

    /// The next report; `clock` is the receiver's wall clock as rtl_433 prints it.
    pub(super) fn next(&mut self, clock: &str) -> Report {
        if let Some(repeat) = self.repeats.pop_front() {
            return repeat;
        }
        if self.rng.u32(..GARBAGE_ONE_IN) == 0 {
            return self.garbage();
        }
        if self.rng.u32(..OTHER_SENSOR_ONE_IN) == 0 {
            let (id, current) = (self.rng.u16(..), self.rng.f64() * 20.0);
            let line = format!(
                r#"{{"time" : "{clock}", "model" : "Efergy-e2CT", "id" : {id}, "battery_ok" : 0, "current" : {current:.3}, "interval" : 6}}"#
            );
            return Report { key: self.receiver.clone(), line, fate: Fate::PluginDecides };
        }
        self.tyre_report(clock)
    }

    fn tyre_report(&mut self, clock: &str) -> Report {
        let count = self.tyres.len();
        let tyre = &mut self.tyres[self.next];
        self.next = (self.next + 1) % count;
        tyre.counter += 1;
        tyre.kpa = (tyre.kpa - tyre.leak_kpa + self.rng.f64() * 0.8 - 0.4).max(5.0);
        tyre.celsius += self.rng.f64() * 0.4 - 0.2;
        let make = &MAKES[tyre.make];
        let id = if make.numeric_id { tyre.id.to_string() } else { format!("\"{:08x}\"", tyre.id) };
        let reading = Reading { kpa: tyre.kpa, celsius: tyre.celsius, counter: tyre.counter };
        let silent = self.rng.u32(..NO_PRESSURE_ONE_IN) == 0;
        let fields = if silent { format!(r#""code" : "{:06x}""#, self.rng.u32(..1 << 24)) } else { (make.fields)(&reading) };
        let (model, mic) = (make.model, make.mic);
        let line =
            format!(r#"{{"time" : "{clock}", "model" : "{model}", "type" : "TPMS", "id" : {id}, {fields}, "mic" : "{mic}"}}"#);
        let report = Report {
            key: format!("{model}/{:08x}", tyre.id),
            line,
            fate: if silent { Fate::PluginDecides } else { Fate::Stored },
        };
        if self.rng.u32(..REPEATED_ONE_IN) == 0 {
            let times = self.rng.usize(1..=3);
            let repeat = Report { fate: Fate::PluginDecides, ..report.clone() };
            self.repeats.extend(std::iter::repeat_n(repeat, times));
        }
        report
    }

    /// What a receiver's serial line gives when a byte is lost: cut, doubled or binary.
    fn garbage(&mut self) -> Report {
        let line = match self.rng.u8(..3) {
            0 => r#"{"time" : "@0.18"#.to_owned(),
            1 => format!("tpms: unknown flags 0x{:04x}", self.rng.u16(..)),
            _ => format!("\u{1}\u{2}{}\u{7f}", self.rng.u32(..)),
        };
        Report { key: self.receiver.clone(), line, fate: Fate::DeadLetter }
    }
}

fn tyre(rng: &mut Rng, number: usize) -> Tyre {
    let hot = rng.u32(..HOT_ONE_IN) == 0;
    let leaks = rng.u32(..LEAKING_ONE_IN) == 0;
    Tyre {
        // The four tyres of a vehicle are of one make.
        make: (number / 4) % MAKES.len(),
        id: rng.u32(1 << 20..),
        kpa: 215.0 + rng.f64() * 50.0,
        celsius: if hot { 96.0 } else { 18.0 + rng.f64() * 20.0 },
        leak_kpa: if leaks { 15.0 + rng.f64() * 25.0 } else { 0.0 },
        counter: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports(seed: u64, count: usize) -> Vec<Report> {
        let mut fleet = Fleet::new("gate", 100, seed);
        (0..count).map(|_| fleet.next("2026-01-02 03:04:05")).collect()
    }

    #[test]
    fn the_same_seed_tells_the_same_story() {
        let lines = |seed| reports(seed, 500).into_iter().map(|report| report.line).collect::<Vec<_>>();
        assert_eq!(lines(7), lines(7));
        assert_ne!(lines(7), lines(8));
    }

    #[test]
    fn every_unit_every_make_and_every_trouble_occurs() {
        let all = reports(1, 5000);
        for sign in ["pressure_PSI", "pressure_kPa", "pressure_bar", "temperature_C", "temperature_F", "Efergy", "code"] {
            assert!(all.iter().any(|report| report.line.contains(sign)), "{sign}");
        }
        for make in &MAKES {
            assert!(all.iter().any(|report| report.key.starts_with(make.model)), "{}", make.model);
        }
    }

    #[test]
    fn only_garbage_is_not_json_and_readings_always_have_a_pressure() {
        for report in reports(2, 5000) {
            let parsed: Result<serde_json::Value, _> = serde_json::from_str(&report.line);
            assert_eq!(parsed.is_err(), report.fate == Fate::DeadLetter, "{}", report.line);
            if report.fate == Fate::Stored {
                assert!(report.line.contains("\"pressure_") && report.line.contains("TPMS"), "{}", report.line);
            }
        }
    }

    #[test]
    fn a_repeat_follows_its_original_word_for_word() {
        let all = reports(3, 2000);
        let repeats = all.windows(2).filter(|pair| pair[1].line == pair[0].line && !pair[0].line.contains("tpms:")).count();
        assert!(repeats > 100, "{repeats}");
        for pair in all.windows(2) {
            if pair[1].line == pair[0].line && pair[1].fate != Fate::DeadLetter {
                assert_eq!(pair[1].fate, Fate::PluginDecides, "{}", pair[1].line);
            }
        }
    }
}
