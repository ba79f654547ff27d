//! The sweep over the address line of one family.

use super::ports::{Cover, PORT_CLASSES, portless_winner, winners};
use super::{Claim, Class, Compiled, CompiledBox};
use crate::model::Destination;
use crate::resolve::Precedence;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One piece of one destination entry: a run of addresses without its exceptions.
struct Piece {
    first: u128,
    last: u128,
    order: (Precedence, usize, usize),
}

/// Result for one run of addresses: (class, first port, last port, verdict), sorted, and whether protocols without
/// ports are claimed.
#[derive(PartialEq, Eq)]
struct Slice<V> {
    ports: Vec<(Option<Class>, u16, u16, V)>,
    portless: bool,
}

/// Address as a number within its family.
pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address with this number.
pub(super) fn address(family: usize, number: u128) -> IpAddr {
    match family {
        0 => IpAddr::V4(Ipv4Addr::from_bits(
            u32::try_from(number).expect("a run ends inside the line of its family"),
        )),
        _ => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}

fn bounds(net: &IpNet) -> (u128, u128) {
    (number(net.network()), number(net.broadcast()))
}

fn family_end(family: usize) -> u128 {
    if family == 0 {
        u128::from(u32::MAX)
    } else {
        u128::MAX
    }
}

/// The runs of a destination: its prefix without its exceptions.
fn runs(destination: &Destination) -> Vec<(u128, u128)> {
    let (first, last) = bounds(&destination.cidr);
    let same = |e: &&IpNet| e.network().is_ipv4() == destination.cidr.network().is_ipv4();
    let mut holes: Vec<(u128, u128)> = destination.except.iter().filter(same).map(bounds).collect();
    holes.sort_unstable();
    let mut result = Vec::new();
    let mut next = Some(first);
    for (hole_first, hole_last) in holes {
        let Some(start) = next else { break };
        if hole_last < start || hole_first > last {
            continue;
        }
        if hole_first > start {
            result.push((start, hole_first - 1));
        }
        next = hole_last.checked_add(1);
    }
    if let Some(start) = next.filter(|start| *start <= last) {
        result.push((start, last));
    }
    result
}

fn pieces<V>(claims: &[Claim<'_, V>], family: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (number, claim) in claims.iter().enumerate() {
        let Some(destinations) = claim.destinations else {
            let order = ((claim.precedence)(0), number, 0);
            pieces.push(Piece {
                first: 0,
                last: family_end(family),
                order,
            });
            continue;
        };
        for (entry, destination) in destinations.iter().enumerate() {
            if usize::from(destination.cidr.network().is_ipv6()) != family {
                continue;
            }
            let order = (
                (claim.precedence)(destination.cidr.prefix_len()),
                number,
                entry,
            );
            pieces.extend(runs(destination).into_iter().map(|(first, last)| Piece {
                first,
                last,
                order,
            }));
        }
    }
    pieces
}

/// Sweeps one family and appends the results.
pub(super) fn family<V: Copy + Eq>(
    claims: &[Claim<'_, V>],
    family: usize,
    compiled: &mut Compiled<V>,
) {
    let pieces = pieces(claims, family);
    let mut starts: BTreeMap<u128, Vec<usize>> = BTreeMap::new();
    let mut ends: BTreeMap<u128, Vec<usize>> = BTreeMap::new();
    for (i, piece) in pieces.iter().enumerate() {
        starts.entry(piece.first).or_default().push(i);
        if let Some(after) = piece.last.checked_add(1) {
            ends.entry(after).or_default().push(i);
        }
    }
    let cuts: BTreeSet<u128> = starts.keys().chain(ends.keys()).copied().collect();
    let cuts: Vec<u128> = cuts.into_iter().collect();
    let mut active: BTreeSet<(Precedence, usize, usize)> = BTreeSet::new();
    let mut run: Option<(u128, u128, Slice<V>)> = None;
    for (i, first) in cuts.iter().enumerate() {
        for piece in ends.get(first).into_iter().flatten() {
            active.remove(&pieces[*piece].order);
        }
        for piece in starts.get(first).into_iter().flatten() {
            active.insert(pieces[*piece].order);
        }
        let last = cuts.get(i + 1).map_or(family_end(family), |next| next - 1);
        let slice = slice(claims, family, active.iter(), &mut compiled.overlaps);
        match &mut run {
            Some((_, run_last, known)) if *known == slice => *run_last = last,
            _ => {
                flush(run.take(), family, compiled);
                // The cut after the last IPv4 address is outside the line.
                run = (*first <= last).then_some((*first, last, slice));
            }
        }
    }
    flush(run, family, compiled);
}

/// Evaluates the active claims for the current piece.
fn slice<'k, V: Copy + Eq>(
    claims: &[Claim<'_, V>],
    family: usize,
    active: impl Iterator<Item = &'k (Precedence, usize, usize)>,
    overlaps: &mut BTreeSet<(usize, usize)>,
) -> Slice<V> {
    let covers: Vec<Cover<'_>> = active
        .map(|(_, claim, entry)| Cover {
            claim: *claim,
            entry: claims[*claim].destinations.map(|all| &all[*entry]),
        })
        .collect();
    let verdict = |claim: usize| claims[claim].verdicts[family];
    let mut per_class: Vec<Vec<(u16, u16, V)>> = Vec::with_capacity(PORT_CLASSES.len());
    for class in PORT_CLASSES {
        let mut runs: Vec<(u16, u16, V)> = Vec::new();
        for (first, last, winner) in winners(&covers, class, overlaps) {
            let Some(verdict) = verdict(winner) else {
                continue;
            };
            match runs.last_mut() {
                Some(run) if run.2 == verdict && run.1.checked_add(1) == Some(first) => {
                    run.1 = last
                }
                _ => runs.push((first, last, verdict)),
            }
        }
        per_class.push(runs);
    }
    let portless = portless_winner(&covers, overlaps)
        .and_then(verdict)
        .is_some();
    let alike = per_class.windows(2).all(|pair| pair[0] == pair[1]);
    let ports = match per_class[0].as_slice() {
        [(0, u16::MAX, verdict)] if alike => vec![(None, 0, u16::MAX, *verdict)],
        _ => PORT_CLASSES
            .into_iter()
            .zip(per_class)
            .flat_map(|(class, runs)| {
                runs.into_iter()
                    .map(move |(a, b, v)| (Some(class), a, b, v))
            })
            .collect(),
    };
    Slice { ports, portless }
}

fn flush<V: Copy>(run: Option<(u128, u128, Slice<V>)>, family: usize, compiled: &mut Compiled<V>) {
    let Some((first, last, slice)) = run else {
        return;
    };
    let (first, last) = (address(family, first), address(family, last));
    compiled.boxes.extend(
        slice
            .ports
            .iter()
            .map(|(class, port_first, port_last, verdict)| CompiledBox {
                first,
                last,
                class: *class,
                port_first: *port_first,
                port_last: *port_last,
                verdict: *verdict,
            }),
    );
    if slice.portless {
        // Ports may differ where portless does not: join adjacent runs.
        if let Some(previous) = compiled.portless.last_mut()
            && previous.1.is_ipv4() == first.is_ipv4()
            && number(previous.1).checked_add(1) == Some(number(first))
        {
            previous.1 = last;
        } else {
            compiled.portless.push((first, last));
        }
    }
}
