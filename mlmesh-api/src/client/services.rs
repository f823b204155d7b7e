//! Calls about services.

use super::{Client, encoded};
use crate::{
    ChangedModelDto, ClientError, EndpointsDto, IdempotencyKey, MakerDto, ModelsDto,
    ScaleServiceDto, ScaledServiceDto, ServicesDto,
};

impl Client {
    /// Services that have not ended.
    pub fn services(&self) -> Result<ServicesDto, ClientError> {
        self.get("/v1/services".to_owned())
    }

    /// Replicas that are ready.
    pub fn endpoints(&self) -> Result<EndpointsDto, ClientError> {
        self.get("/v1/endpoints".to_owned())
    }

    /// Models of services that are ready.
    pub fn models(&self) -> Result<ModelsDto, ClientError> {
        self.get("/v1/models".to_owned())
    }

    /// Has a service load a model of its repository, or unload it.
    pub fn change_model(
        &self,
        service: &str,
        model: &str,
        load: bool,
    ) -> Result<ChangedModelDto, ClientError> {
        let verb = if load { "load" } else { "unload" };
        let (service, model) = (encoded(service), encoded(model));
        let path = format!("/v1/services/{service}/models/{model}/{verb}");
        self.long_post(path, &serde_json::json!({}), None)
    }

    /// Which run put a file of this digest out.
    pub fn maker(&self, sha256: &str) -> Result<MakerDto, ClientError> {
        self.get(format!("/v1/objects/{}/maker", encoded(sha256)))
    }

    /// Brings a service to so many replicas.
    pub fn scale_service(
        &self,
        name: &str,
        replicas: u32,
        key: &IdempotencyKey,
    ) -> Result<ScaledServiceDto, ClientError> {
        let path = format!("/v1/services/{}/scale", encoded(name));
        self.long_post(path, &ScaleServiceDto { replicas }, Some(key))
    }

    /// Ends every replica of a service.
    pub fn stop_service(
        &self,
        name: &str,
        key: &IdempotencyKey,
    ) -> Result<ScaledServiceDto, ClientError> {
        let path = format!("/v1/services/{}/stop", encoded(name));
        self.long_post(path, &serde_json::json!({}), Some(key))
    }
}
