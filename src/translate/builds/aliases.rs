//! What the builds know of the aliases: what these are to be like, and what commands did to them.

use std::sync::Arc;

use crate::translate::builds::{Builds, Served};
use crate::translate::load::{Known, Prepared};
use crate::translate::tend::Expected;

impl Builds {
    /// What the indices and aliases are to be like; None while that changes.
    pub fn expected(&self) -> Option<Expected> {
        (self.loaded_once && !self.loading).then(|| Expected {
            builds: self.served.values().map(|it| Arc::clone(&it.build)).collect(),
            serving: self
                .served
                .values()
                .filter(|it| it.serving)
                .map(|it| it.build.plan.name.clone())
                .collect(),
            known: self.named.clone(),
            frozen: self.frozen.clone(),
            wishes: self.wishes.clone(),
        })
    }

    /// Takes in where a load found the aliases of builds that go on.
    pub(super) fn follow_aliases(&mut self, prepared: &[Prepared]) {
        for it in prepared.iter().filter(|it| it.known == Known::Same) {
            let followed = self.served.values_mut().find(|on| *on.build.index == *it.index);
            followed.into_iter().for_each(|on| on.follow_alias(it.serving));
        }
    }
}

impl Served {
    /// A command has led the alias here, or away: then it must be led here again, verified.
    fn follow_alias(&mut self, serving: bool) {
        let led_away = self.serving && !serving;
        self.serving = serving;
        if led_away {
            self.owe(None);
        }
    }
}
