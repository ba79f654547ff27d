//! What stands in the way on this node, seen without its agent: the packets to look for are those that Egret's own table
//! names, if it is there.

use egret_core::error::with_causes;
use egret_core::numbers::{NFT_TABLE, TUNNEL_DEVICE};
use egret_core::obstacle::{Obstacle, Sample, Samples, of_settings};
use egret_datapath::nft::{NftError, Nftables};
use egret_datapath::obstacle::{Lookout, read_settings};
use std::net::IpAddr;
use std::path::Path;

/// What is found; what cannot be seen is added to `unseen`.
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

/// One pod and one egress address of each family that this node serves; of both families, and unknown, where Egret is
/// not there yet.
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
