//! MirroredImages: created, replaced and deleted, each in one request.

use kube::api::{DeleteParams, PostParams, Preconditions};

use super::{Apis, Key, Publisher, Wanted};
use crate::{
    api::{
        self,
        v1alpha1::{MirroredImage, MirroredImageSpec},
    },
    clock,
    cluster::writer::NotWritten,
    companion::cluster::inherit::Written,
    domain::presence::Presence,
    telemetry::chain,
};

impl Publisher {
    /// Makes the API server have of an image what it should.
    pub(super) async fn write_image(&mut self, apis: &Apis, (mirror, key): &Key) -> Result<(), NotWritten> {
        let name = MirroredImage::object_name(mirror, key);
        let written = self
            .written
            .get(mirror)
            .and_then(|images| images.get(key))
            .copied();
        let result = match (self.wanted(mirror, key), written) {
            (Wanted::This(spec), None) => self.create(apis, &name, *spec).await,
            (Wanted::This(spec), Some(written)) => self.replace(apis, &name, *spec, written.version).await,
            (Wanted::Nothing, Some(written)) => self.delete(apis, &name, (mirror, key), written).await,
            (Wanted::Nothing, None) | (Wanted::Open, _) => Ok(()),
        };
        match result {
            Err(NotWritten::Conflict | NotWritten::Gone) => {
                // Look again, and let the next round decide anew.
                let object = apis.images.get_opt(&name).await?;
                let images = self.written.entry(mirror.clone()).or_default();
                match object {
                    Some(object) => {
                        let version = object.metadata.resource_version.as_deref();
                        images.insert(key.clone(), Written::of(&object.spec, version));
                    }
                    None => {
                        images.remove(key);
                    }
                }
                Err(NotWritten::Conflict)
            }
            Err(NotWritten::Refused(error)) => {
                let error = chain(&error);
                tracing::warn!(
                    mirror,
                    image = key,
                    error,
                    "the API server refuses a MirroredImage"
                );
                match written {
                    // What is there is not true any more.
                    Some(written) => {
                        let written = Written {
                            present: false,
                            ..written
                        };
                        self.delete(apis, &name, (mirror, key), written).await
                    }
                    None => Ok(()),
                }
            }
            other => other,
        }
    }

    async fn create(&mut self, apis: &Apis, name: &str, spec: MirroredImageSpec) -> Result<(), NotWritten> {
        let object = MirroredImage::new(name, spec);
        let parameters = PostParams::default();
        let request = apis.images.create(&parameters, &object);
        let answer = self.leader.writer.write("MirroredImage", request).await?;
        self.wrote(object.spec, &answer);
        Ok(())
    }

    async fn replace(
        &mut self,
        apis: &Apis,
        name: &str,
        spec: MirroredImageSpec,
        version: u64,
    ) -> Result<(), NotWritten> {
        let mut object = MirroredImage::new(name, spec);
        object.metadata.resource_version = Some(version.to_string());
        let parameters = PostParams::default();
        let request = apis.images.replace(name, &parameters, &object);
        let answer = self.leader.writer.write("MirroredImage", request).await?;
        self.wrote(object.spec, &answer);
        Ok(())
    }

    async fn delete(
        &mut self,
        apis: &Apis,
        name: &str,
        (mirror, key): (&str, &str),
        written: Written,
    ) -> Result<(), NotWritten> {
        let mut version = written.version;
        if written.present {
            // A deletion has no version that a sweep could name. So readers first hear that
            // nothing is known, and a later sweep cannot renew what they still have.
            let spec = api::image::spec(mirror, key, &Presence::Unknown(None), clock::now());
            self.replace(apis, name, spec, version).await?;
            let now = self.written.get(mirror).and_then(|images| images.get(key));
            version = now.map_or(version, |written| written.version);
        }
        let parameters = DeleteParams {
            preconditions: Some(Preconditions {
                resource_version: Some(version.to_string()),
                uid: None,
            }),
            ..DeleteParams::default()
        };
        let request = apis.images.delete(name, &parameters);
        match self.leader.writer.write("MirroredImage", request).await {
            Ok(_) | Err(NotWritten::Gone) => {
                if let Some(images) = self.written.get_mut(mirror) {
                    images.remove(key);
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Notes what was written: as it was sent, because what an older definition drops would look like a
    /// change that is still to be written.
    fn wrote(&mut self, sent: MirroredImageSpec, answer: &MirroredImage) {
        let written = Written::of(&sent, answer.metadata.resource_version.as_deref());
        self.through = self.through.max(written.version);
        self.written
            .entry(sent.mirror.into())
            .or_default()
            .insert(sent.image.into(), written);
    }
}
