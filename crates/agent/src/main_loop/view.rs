//! New views of the objects.

use super::MainLoop;
use egret_core::node::concerns;
use egret_objects::View;
use std::time::Instant;

impl MainLoop {
    /// Takes up a new view. What does not concern this node, as most writes of statuses, is no reason for a round.
    pub(super) fn take_up_view(&mut self, view: Box<View>, since: Instant) {
        let node = &self.config.node;
        let own = |view: &View| view.snapshot.node_records.get_shared(node).cloned();
        let (concerns, reports) = match &self.inputs.view {
            Some(before) => (
                concerns(&before.snapshot, &view.snapshot, node),
                own(before) != own(&view),
            ),
            None => (true, false),
        };
        self.inputs.view = Some(view);
        if concerns {
            self.inputs.view_since.get_or_insert(since);
            self.inputs.pod_devices.invalidate();
            self.schedule.request_round();
        } else if reports {
            // Somebody may have overwritten this node's status.
            self.report_now();
        }
    }
}
