//! Calls about users, keys and roles.

use super::{CallBody, Client, call, encoded};
use crate::{
    AddKeyDto, AddUserDto, ApiKeyDto, ApiKeysDto, ChangeRoleDto, ClientError, RemoveUserDto,
    RemovedUserDto, RolesDto, RotateKeyDto, UserDto, UsersDto, WhoDto,
};

impl Client {
    /// Who the caller is.
    pub fn who(&self) -> Result<WhoDto, ClientError> {
        self.get("/v1/who".to_owned())
    }

    /// All users.
    pub fn users(&self) -> Result<UsersDto, ClientError> {
        self.get("/v1/users".to_owned())
    }

    /// Adds a user. The same again changes nothing.
    pub fn add_user(&self, user: &AddUserDto) -> Result<UserDto, ClientError> {
        self.post("/v1/users".to_owned(), user, None)
    }

    /// Gives a user another role.
    pub fn change_role(&self, name: &str, role: &ChangeRoleDto) -> Result<UserDto, ClientError> {
        self.post(format!("/v1/users/{}/role", encoded(name)), role, None)
    }

    /// Removes a user and revokes their keys.
    pub fn remove_user(
        &self,
        name: &str,
        how: &RemoveUserDto,
    ) -> Result<RemovedUserDto, ClientError> {
        self.long_post(format!("/v1/users/{}/remove", encoded(name)), how, None)
    }

    /// The caller's keys, or everybody's.
    pub fn keys(&self) -> Result<ApiKeysDto, ClientError> {
        self.get("/v1/keys".to_owned())
    }

    /// Adds a key by its hash. The same again changes nothing.
    pub fn add_key(&self, key: &AddKeyDto) -> Result<ApiKeyDto, ClientError> {
        self.post("/v1/keys".to_owned(), key, None)
    }

    /// Puts another secret under the name of a key.
    pub fn rotate_key(&self, name: &str, key: &RotateKeyDto) -> Result<ApiKeyDto, ClientError> {
        self.post(format!("/v1/keys/{}/rotate", encoded(name)), key, None)
    }

    /// Revokes a key.
    pub fn revoke_key(&self, name: &str) -> Result<(), ClientError> {
        let path = format!("/v1/keys/{}", encoded(name));
        let bytes = self.transport.bytes(&call("DELETE", path, CallBody::None));
        bytes.map(drop)
    }

    /// Reads the permissions file again.
    pub fn reload_roles(&self) -> Result<RolesDto, ClientError> {
        self.post("/v1/roles/reload".to_owned(), &serde_json::json!({}), None)
    }

    /// Roles and what each may do.
    pub fn roles(&self) -> Result<RolesDto, ClientError> {
        self.get("/v1/roles".to_owned())
    }
}
