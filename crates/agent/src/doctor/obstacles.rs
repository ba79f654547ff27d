//! Obstacles on this node, found without its agent: the sample packets are taken from Egret's own table, if it exists.

use egret_core::error::with_causes;
use egret_core::numbers::{NFT_TABLE, TUNNEL_DEVICE};
use egret_core::obstacle::{Obstacle, Sample, Samples, of_settings};
use egret_datapath::obstacle::{Lookout, read_settings};
use egret_kernel::nft::{NftError, Nftables};
use std::net::IpAddr;
use std::path::Path;

/// Finds obstacles; adds parts that cannot be read to `unseen`.
pub(super) fn read(root: &Path, unseen: &mut Vec<String>) -> Vec<Obstacle> {
    let mut found = Vec::new();
    match read_settings(root) {
        Ok(settings) => found.extend(of_settings(&settings)),
        Err(error) => unseen.push(format!("settings: {}", with_causes(&error))),
    }
    let samples = samples().unwrap_or_else(|error| {
        unseen.push(format!("Egret's own table: {}", with_causes(&error)));
        Samples::default()
    });
    let looked = Lookout::open().and_then(|mut lookout| Ok(lookout.look(&samples)?.to_vec()));
    match looked {
        Ok(obstacles) => found.extend(obstacles),
        Err(error) => unseen.push(format!("firewalls: {}", with_causes(&error))),
    }
    found.sort();
    found
}

/// Sample addresses: one pod and one egress address of each family that this node serves; where Egret is not installed,
/// samples of both families without addresses.
fn samples() -> Result<Samples, NftError> {
    let mut nft = Nftables::open(NFT_TABLE)?;
    let mut of = |family: &str| -> Result<Sample, NftError> {
        let pods = nft.addresses_in(&format!("classify_pods{family}"))?;
        let egress = nft.addresses_in(&format!("leased{family}"))?;
        let first = |addresses: Vec<IpAddr>| addresses.into_iter().min();
        Ok(Sample {
            pod: first(pods),
            egress: first(egress),
            ..Sample::default()
        })
    };
    let (v4, v6) = (of("4")?, of("6")?);
    let is_here = nix::net::if_::if_nametoindex(TUNNEL_DEVICE).is_ok();
    let wanted = |sample: Sample| (!is_here || sample.egress.is_some()).then_some(sample);
    Ok(Samples {
        v4: wanted(v4),
        v6: wanted(v6),
        tunnel: true,
    })
}
