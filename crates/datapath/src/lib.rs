pub mod conntrack;
pub mod driver;
pub mod gateway;
pub mod netlink;
pub mod nft;
pub mod route;
pub mod sysctl;
pub mod worker;
