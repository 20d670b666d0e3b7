//! `weir cert`: certificates for sites without a CA.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::Failure;
use crate::cert::{CA_DAYS, Ca, LEAF_DAYS, make_ca, write_pair};

#[derive(Debug, Args)]
pub(super) struct CertArgs {
    /// Directory of the files
    #[arg(long, env = "WEIR_CERTS", default_value = "weir-certs", global = true, value_name = "DIR")]
    dir: PathBuf,
    /// Replaces what is there
    #[arg(long, global = true)]
    force: bool,
    #[command(subcommand)]
    command: CertCommand,
}

#[derive(Debug, Subcommand)]
enum CertCommand {
    /// Makes a CA: ca.pem, ca.key
    Ca {
        /// The CA's common name
        #[arg(long, default_value = "Weir site CA")]
        name: String,
        /// Days it is valid
        #[arg(long, default_value_t = CA_DAYS)]
        days: i64,
    },
    /// Makes the node's certificate: server.pem, server.key
    Server {
        /// Host names and IP addresses that clients use for the node
        #[arg(default_values_t = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()], value_name = "NAME")]
        names: Vec<String>,
        /// Days it is valid
        #[arg(long, default_value_t = LEAF_DAYS)]
        days: i64,
    },
    /// Makes client certificates, one a principal: <principal>.pem, <principal>.key
    #[command(visible_alias = "client")]
    Device {
        /// Names of devices, gateways or people, as ACL rules know them
        #[arg(required = true, value_name = "PRINCIPAL")]
        principals: Vec<String>,
        /// Days they are valid
        #[arg(long, default_value_t = LEAF_DAYS)]
        days: i64,
    },
    /// Makes all of it at once: CA, server certificate, client certificates
    Site {
        /// Host names and IP addresses of the node
        #[arg(default_values_t = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()], value_name = "NAME")]
        names: Vec<String>,
        /// A principal to make a client certificate for; may be repeated
        #[arg(long = "client", default_values_t = ["admin".to_owned()], value_name = "PRINCIPAL")]
        clients: Vec<String>,
    },
}

pub(super) fn run(args: CertArgs) -> Result<(), Failure> {
    let (dir, force) = (args.dir.as_path(), args.force);
    match args.command {
        CertCommand::Ca { name, days } => {
            write(dir, "ca", make_ca(&name, days)?.pem(), force)?;
            tell(&format!("next: weir cert server --dir {0} && weir cert device --dir {0} admin", dir.display()))
        }
        CertCommand::Server { names, days } => server(dir, &names, days, force),
        CertCommand::Device { principals, days } => {
            let ca = Ca::from_dir(dir)?;
            principals.iter().try_for_each(|principal| write(dir, principal, &ca.make_client(principal, days)?, force))
        }
        CertCommand::Site { names, clients } => {
            write(dir, "ca", make_ca("Weir site CA", CA_DAYS)?.pem(), force)?;
            server(dir, &names, LEAF_DAYS, force)?;
            let ca = Ca::from_dir(dir)?;
            clients.iter().try_for_each(|principal| write(dir, principal, &ca.make_client(principal, LEAF_DAYS)?, force))
        }
    }
}

fn server(dir: &Path, names: &[String], days: i64, force: bool) -> Result<(), Failure> {
    let (addresses, names): (Vec<&String>, Vec<&String>) = names.iter().partition(|name| name.parse::<IpAddr>().is_ok());
    let addresses: Vec<IpAddr> = addresses.iter().filter_map(|text| text.parse().ok()).collect();
    let names: Vec<String> = names.into_iter().cloned().collect();
    write(dir, "server", &Ca::from_dir(dir)?.make_server(&names, &addresses, days)?, force)
}

fn write(dir: &Path, name: &str, pair: &crate::cert::PemPair, force: bool) -> Result<(), Failure> {
    let (cert, key) = write_pair(dir, name, pair, force)?;
    tell(&format!("{}\n{} (private)", cert.display(), key.display()))
}

fn tell(text: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}
